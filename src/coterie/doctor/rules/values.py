"""Rules about the stored numbers: what is not finite, zero, absurd, or there twice."""

from collections.abc import Callable, Iterator

import numpy as np

from coterie.doctor.copies import copies
from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Level, Symptom
from coterie.doctor.matrices import Matrix, matrices
from coterie.doctor.registry import rule
from coterie.doctor.values import Statistics
from coterie.doctor.wording import by_layer, counted, plain, ranges

_ABSURD = 1e4
_NO_SCALE = 1e-6
"""What a quantiser writes as the scale of a group of zeros is below this, and no scale of other weights is."""
_LEAST_COPY = 1024


@rule(Level.ERROR, "values")
def not_finite(evidence: Evidence) -> Iterator[Symptom]:
    """A weight, a scale or a bias is NaN or infinite."""
    for name, found in (evidence.values or {}).items():
        if found.n_bad:
            what = f"{counted(found.n_bad, 'value')} of NaN or infinity, the first at {found.first_bad}"
            yield Symptom(plain(name), what, "finite numbers", "fetch or convert again", cause="not_finite")


@rule(Level.ERROR, "values")
def scales_zero(evidence: Evidence) -> Iterator[Symptom]:
    """All scales of a matrix are zero, which a quantiser does not write: the file may have a hole."""

    def is_zero(found: Statistics) -> bool:
        return found.info.dtype.itemsize > 1 and found.info.nbytes > 0 and found.largest == 0 and not found.n_bad

    yield from _scales(evidence, is_zero, "only zeros", "scales of a quantiser", "zero_scales")


@rule(Level.ERROR, "values")
def scales_denormal(evidence: Evidence) -> Iterator[Symptom]:
    """Scales in float32 or bfloat16 are denormal. No quantiser comes near, and processors may flush them to zero."""
    yield from _scales(
        evidence, lambda found: found.n_denormal > 0, "denormal numbers", "scales of at least 1e-37", "denormal_scales"
    )


@rule(Level.WARNING, "values")
def values_absurd(evidence: Evidence) -> Iterator[Symptom]:
    """A scale, a bias or a weight of a matrix is above 10,000, as after a flipped bit or a wrong dtype."""
    for name, found in (evidence.values or {}).items():
        if len(found.info.shape) > 1 and found.largest > _ABSURD:
            advice = "compare the file with the original's checksum, or fetch it again"
            yield Symptom(plain(name), f"a magnitude of {found.largest:.4g}", f"at most {_ABSURD:,.0f}", advice)


@rule(Level.WARNING, "values", "architecture")
def norm_zero(evidence: Evidence) -> Iterator[Symptom]:
    """The weight of a norm is all zero, so the branch behind it computes nothing."""
    zero = []
    for slot in evidence.slots:
        found = (evidence.values or {}).get(slot.tensor)
        if slot.kind == "norm" and found is not None and found.info.nbytes and not found.n_bad and found.largest == 0:
            zero.append(slot.tensor)
    for where, _ in by_layer(zero):
        advice = "fetch or convert again; some originals store the weight minus one, which a conversion has to add"
        yield Symptom(where, "only zeros", "weights around one", advice)


@rule(Level.WARNING, "values", "weights", "architecture")
def expert_dead(evidence: Evidence) -> Iterator[Symptom]:
    """All weights of an expert are zero, so tokens that are sent there get nothing."""
    for matrix in matrices(evidence):
        if matrix.slot.kind == "experts":
            dead = _zero_rows(matrix, evidence)
            if dead.size:
                found = f"{counted(len(dead), 'expert')} of {matrix.shape[0]} with only zeros: {ranges(dead.tolist())}"
                advice = "fetch or convert again; if the original is like this, the experts were pruned"
                yield Symptom(plain(matrix.path), found, "experts that compute something", advice)


@rule(Level.WARNING, "values", "weights", "architecture")
def router_row_dead(evidence: Evidence) -> Iterator[Symptom]:
    """The row of a router for an expert is all zero: its score is the same for every token."""
    assert evidence.architecture is not None
    layers = evidence.architecture.layers
    for matrix in matrices(evidence):
        moe = None if matrix.slot.layer is None else layers[matrix.slot.layer].moe
        if moe is not None and matrix.module == moe.router.module:
            dead = _zero_rows(matrix, evidence)
            if dead.size:
                found = f"only zeros for {counted(len(dead), 'expert')}: {ranges(dead.tolist())}"
                advice = "fetch or convert again; if the original is like this, the experts are never meant"
                yield Symptom(plain(matrix.path), found, "a row of weights for each expert", advice)


@rule(Level.WARNING, "values", "weights", "architecture")
def tensors_identical(evidence: Evidence) -> Iterator[Symptom]:
    """Two matrices hold the same bytes: a layer was copied, or written under two names."""
    assert evidence.weights is not None
    assert evidence.architecture is not None
    tensors = evidence.weights.tensors
    inner = [matrix.slot.tensor for matrix in matrices(evidence) if matrix.slot.layer is not None]
    large = ((name, tensors[name]) for name in inner if evidence.weights.infos[name].nbytes >= _LEAST_COPY)
    for group in copies(large):
        advice = "fetch or convert again; if layers were copied on purpose, nothing"
        for name in group[1:]:
            yield Symptom(plain(name), f"the bytes of {plain(group[0])}", "weights of its own", advice)


@rule(Level.WARNING, "values", "weights", "architecture")
def experts_identical(evidence: Evidence) -> Iterator[Symptom]:
    """Two experts of a layer are the same, byte by byte."""
    assert evidence.weights is not None
    for matrix in matrices(evidence):
        if matrix.slot.kind != "experts":
            continue
        stack = evidence.weights.tensors[matrix.slot.tensor]
        for group in copies(enumerate(stack)):
            found = f"{len(group)} experts with the same bytes: {ranges(group)}"
            advice = "fetch or convert again; a model made by copying a dense one begins like this"
            yield Symptom(plain(matrix.path), found, "experts that differ", advice)


def _scales(
    evidence: Evidence, is_wrong: Callable[[Statistics], bool], found: str, expected: str, cause: str
) -> Iterator[Symptom]:
    names = [n for n, stats in (evidence.values or {}).items() if n.endswith(".scales") and is_wrong(stats)]
    for where, _ in by_layer(names):
        yield Symptom(where, found, expected, "fetch or convert again", cause=cause)


def _zero_rows(matrix: Matrix, evidence: Evidence) -> np.ndarray:
    """Indices of the first axis (experts) whose weights are all zero."""
    assert evidence.values is not None
    assert evidence.weights is not None
    nothing = np.zeros(0, np.int64)
    if matrix.format is None:
        rows = _rows(evidence, matrix.slot.tensor)
        return nothing if rows is None else np.flatnonzero(rows == 0)
    scales = evidence.values.get(f"{matrix.path}.scales")
    if scales is None or scales.rows is None:
        return nothing
    if matrix.format.mode == "affine":
        biases = _rows(evidence, f"{matrix.path}.biases")
        return nothing if biases is None else np.flatnonzero((scales.rows <= _NO_SCALE) & (biases == 0))
    # A byte scale is never zero; experts of zeros have one scale throughout, and then the codes tell.
    suspects = nothing if scales.constant_rows is None else scales.constant_rows
    codes = evidence.weights.tensors[matrix.slot.tensor]
    return np.array([i for i in suspects if not codes[i].any()], np.int64)


def _rows(evidence: Evidence, name: str) -> np.ndarray | None:
    found = (evidence.values or {}).get(name)
    return None if found is None or found.n_bad else found.rows
