"""Rules about quantisation: what config.json declares, and what the tensors are."""

import itertools
from collections.abc import Iterator
from typing import Any

from coterie.checkpoint.config import CONFIG
from coterie.doctor.evidence import QUANTIZATION_KEYS, Evidence
from coterie.doctor.findings import Level, Symptom
from coterie.doctor.matrices import Matrix, matrices, module_paths, refusals, without_mode
from coterie.doctor.registry import rule
from coterie.doctor.wording import by_layer, counted, plain, size

_ROUTER_BITS = 8


@rule(Level.ERROR)
def quantization_refused(evidence: Evidence) -> Iterator[Symptom]:
    """The declared quantisation is absurd, or a layout of another tool."""
    for symptom in evidence.refused.get("quantization", ()):
        if symptom.cause != "quantization_contradiction":
            yield symptom


@rule(Level.ERROR, "config")
def quantization_contradiction(evidence: Evidence) -> Iterator[Symptom]:
    """`quantization` and `quantization_config` say different things, and readers take either."""
    declared = [
        (prefix + key, section[key])
        for prefix, section in evidence.sections
        for key in QUANTIZATION_KEYS
        if isinstance(section.get(key), dict)
    ]
    for (first, one), (second, other) in itertools.pairwise(declared):
        differing = sorted(
            key for key in {*one, *other} if one.get(key) != other.get(key) or (key in one) != (key in other)
        )
        if differing and "quant_method" not in {*one, *other}:
            found = "; ".join(f"{plain(key, 80)}: {_short(one, key)} and {_short(other, key)}" for key in differing[:3])
            more = f" and {len(differing) - 3:,} more keys" if len(differing) > 3 else ""
            advice = "keep the one that the tensors agree with, and copy it over the other"
            where = f"{CONFIG}: {first}, {second}"
            yield Symptom(where, found + more, "the same in both", advice, cause="quantization_contradiction")


def _short(section: dict[str, Any], key: str) -> str:
    return plain(str(section[key]), 60) if key in section else "nothing"


@rule(Level.WARNING, "config", "quantization")
def quantization_key_missing(evidence: Evidence) -> Iterator[Symptom]:
    """Only `quantization_config` declares the quantisation. mlx-lm looks for `quantization` and does not load the
    file."""
    for prefix, section in evidence.sections:
        if section.get("quantization_config") and not section.get("quantization"):
            found, expected = "only quantization_config", "the same object under quantization, too"
            yield Symptom(f"{CONFIG}: {prefix}quantization", found, expected, "copy it there")


@rule(Level.ERROR, "quantization", "weights")
def quantization_absent(evidence: Evidence) -> Iterator[Symptom]:
    """config.json declares a quantisation and no tensor has scales, or tensors have scales and nothing declares one."""
    assert evidence.quantization is not None
    assert evidence.weights is not None
    scales = [name for name in evidence.weights.infos if name.endswith(".scales")]
    default = evidence.quantization.default
    if default is not None and not scales:
        advice = "remove the declaration, or fetch the quantised weights"
        yield Symptom("the weights", "no scales", f"{default}, as {CONFIG} says", advice, cause="quantization_absent")
    elif default is None and scales:
        found, expected = f"{counted(len(scales), 'tensor')} of scales", "none: config.json declares no quantisation"
        advice = 'add "quantization" with the group_size, bits and mode that the weights were written with'
        yield Symptom("the weights", found, expected, advice, cause="quantization_undeclared")


@rule(Level.NOTE, "quantization", "weights", "architecture")
def override_without_mode(evidence: Evidence) -> Iterator[Symptom]:
    """A layer's own entry has no `mode` while the rest is not affine. It means affine, not the mode of the rest. An
    error where the layer is not stored as affine, else a note: readers that inherit the mode misread the layer."""
    assert evidence.quantization is not None
    assert evidence.weights is not None
    default = evidence.quantization.default
    if default is None or default.mode == "affine":
        return
    wrong, why = without_mode(evidence), refusals(evidence)
    for where, paths in by_layer(wrong):
        cause = why[paths[0]].code if paths[0] in why else None
        found, advice = f"no mode, which means affine; stored as {default.mode}", "add the mode to the entry"
        yield Symptom(where, found, f'"mode": "{default.mode}"', advice, Level.ERROR, cause)
    inherited = [
        path
        for path, entry in evidence.entries.items()
        if isinstance(entry, dict) and entry.get("mode") is None and f"{path}.scales" in evidence.weights.infos
    ]
    for where, _ in by_layer(path for path in inherited if path not in wrong):
        found, advice = "no mode, which means affine, as stored", "nothing, or add the mode for other readers"
        yield Symptom(where, found, '"mode": "affine" in so many words', advice)


@rule(Level.WARNING, "quantization", "weights", "architecture")
def override_unused(evidence: Evidence) -> Iterator[Symptom]:
    """An entry of the quantisation names no layer of this checkpoint, so what it asks for does not happen."""
    assert evidence.weights is not None
    names = module_paths(evidence)
    entries = [
        path for path in evidence.entries if path not in names and f"{path}.weight" not in evidence.weights.infos
    ]
    for where, paths in by_layer(entries):
        if not any(evidence.is_dropped(f"{path}.weight") for path in paths):
            advice = "correct the path, or remove the entry"
            cause = "quantization_key" if "." not in paths[0] else None
            level = Level.ERROR if cause and isinstance(evidence.entries[paths[0]], dict) else None
            yield Symptom(where, "an entry for no layer", "paths of layers", advice, level, cause if level else None)


@rule(Level.WARNING, "quantization", "weights", "architecture")
def format_undeclared(evidence: Evidence) -> Iterator[Symptom]:
    """A layer without an entry is stored in another format than the file declares. Readers that take the declared one
    read the codes wrong: 4 bits in groups of 64 fill exactly what 8 bits in groups of 32 fill."""
    assert evidence.quantization is not None
    default, entries = evidence.quantization.default, evidence.quantization.entries
    odd: dict[str, list[str]] = {}
    for matrix in matrices(evidence):
        if matrix.format is not None and matrix.path not in entries and matrix.format != default:
            odd.setdefault(str(matrix.format), []).append(matrix.path)
    for name, paths in odd.items():
        for where, _ in by_layer(paths):
            yield Symptom(where, f"{name}, by its shapes", f"{default}, as declared", "add an entry with its format")


@rule(Level.WARNING, "quantization", "weights", "architecture")
def matrix_unquantized(evidence: Evidence) -> Iterator[Symptom]:
    """A matrix stayed unquantised among quantised ones, and no entry says so. A note where it seems to be meant: where
    the group size does not divide its inputs, or where only experts are quantised, and all of them."""
    assert evidence.quantization is not None
    assert evidence.family is not None
    assert evidence.config is not None
    default, stored = evidence.quantization.default, matrices(evidence)
    if default is None or all(matrix.format is None for matrix in stored):
        return
    names = evidence.family.name_map(evidence.config)
    left = [
        matrix
        for matrix in stored
        if matrix.format is None
        and matrix.path not in evidence.quantization.entries
        and names.may_quantize(matrix.path)
    ]
    nbytes = {matrix.path: matrix.nbytes for matrix in left}
    if all((matrix.format is not None) == (matrix.slot.kind == "experts") for matrix in stored):
        found, advice = f"{size(sum(nbytes.values()))} unquantised", "nothing: these bytes are read for every token"
        yield Symptom("all but the experts", found, f"{default}, as the experts", advice, Level.NOTE)
        return
    for divides in (True, False):
        paths = [matrix.path for matrix in left if (matrix.shape[-1] % default.group_size == 0) == divides]
        for where, group in by_layer(paths):
            found = f"{size(sum(nbytes[path] for path in group))} unquantised"
            if divides:
                advice = "quantise it, or add an entry of false if it is meant to be so"
                yield Symptom(where, found, f"{default}", advice)
            else:
                expected = f"inputs that groups of {default.group_size} divide"
                advice = "nothing, or convert with a smaller group size: these bytes are read for every token"
                yield Symptom(where, found, expected, advice, Level.NOTE)


@rule(Level.WARNING, "quantization", "weights", "architecture")
def router_bits(evidence: Evidence) -> Iterator[Symptom]:
    """A router has fewer than 8 bits. It is small, and its rounding sends tokens to other experts."""
    few: dict[str, list[str]] = {}
    routers = _routers(evidence)
    for matrix in routers:
        if matrix.format is not None and matrix.format.bits < _ROUTER_BITS:
            few.setdefault(str(matrix.format), []).append(matrix.path)
    for name, paths in few.items():
        for where, _ in by_layer(paths):
            advice = f"convert the original again with --override '.*{routers[0].module}=8:64'"
            yield Symptom(where, name, f"at least {_ROUTER_BITS} bits, or unquantised", advice)


@rule(Level.WARNING, "quantization", "weights", "architecture")
def router_formats(evidence: Evidence) -> Iterator[Symptom]:
    """Routers of different layers have different formats, which no recipe intends."""
    formats: dict[str, list[str]] = {}
    for matrix in _routers(evidence):
        formats.setdefault(str(matrix.format or matrix.dtype), []).append(matrix.path)
    common = max(formats, key=lambda name: len(formats[name]), default="")
    for name, paths in formats.items():
        if name != common:
            for where, _ in by_layer(paths):
                yield Symptom(where, name, f"{common}, as in the other layers", "convert the original again")


@rule(Level.WARNING, "weights")
def quantization_leftovers(evidence: Evidence) -> Iterator[Symptom]:
    """Scales or biases of a quantisation belong to no quantised weight, so nothing reads them."""
    assert evidence.weights is not None
    infos = evidence.weights.infos
    left = []
    for name in infos:
        path, _, leaf = name.rpartition(".")
        if (leaf == "scales" and f"{path}.weight" not in infos) or (leaf == "biases" and f"{path}.scales" not in infos):
            left.append(name)
    for where, names in by_layer(left):
        found = f"{counted(len(names), 'tensor')} without its weight or scales"
        yield Symptom(
            where, found, "complete triples of weight, scales, biases", "fetch or convert the checkpoint again"
        )


def _routers(evidence: Evidence) -> list[Matrix]:
    assert evidence.architecture is not None
    modules = {layer.moe.router.module for layer in evidence.architecture.layers if layer.moe is not None}
    return [matrix for matrix in matrices(evidence) if matrix.slot.layer is not None and matrix.module in modules]
