"""Rules about the tensors against the architecture: which are missing, left over, or not what they should be."""

from collections.abc import Iterator

from coterie.arrays import FLOAT_DTYPES
from coterie.checkpoint.names import plan
from coterie.doctor.copies import same_bytes
from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Level, Symptom, symptom_of
from coterie.doctor.matrices import refusals, without_mode
from coterie.doctor.registry import rule
from coterie.doctor.wording import by_layer, counted, listed, plain, size
from coterie.errors import CoterieError
from coterie.models.weights import PLAIN_KINDS, Slot


@rule(Level.ERROR, "weights", "architecture")
def weights_unconverted(evidence: Evidence) -> Iterator[Symptom]:
    """The tensors have the names of the published original, not MLX's. `coterie convert` makes those."""
    if _is_unconverted(evidence):
        examples = [plain(slot.tensor) for slot in _missing(evidence)]
        found = f"names of an original checkpoint; {counted(len(examples), 'tensor')} under MLX's names missing"
        advice = "convert it with `coterie convert`"
        yield Symptom("the weights", found, listed(examples, 2), advice, cause="missing_tensor")


@rule(Level.ERROR, "weights", "architecture")
def tensor_missing(evidence: Evidence) -> Iterator[Symptom]:
    """A tensor that the architecture needs is not there."""
    if _is_unconverted(evidence):
        return
    shapes = {slot.tensor: slot.shape for slot in _missing(evidence)}
    for where, names in by_layer(shapes):
        advice = "fetch the checkpoint again, or correct config.json"
        expected = f"shape {list(shapes[names[0]])}"
        yield Symptom(where, "no such tensor", expected, advice, cause="missing_tensor")


@rule(Level.ERROR, "weights", "architecture")
def tensor_stray(evidence: Evidence) -> Iterator[Symptom]:
    """A tensor is there that nothing uses: the config belongs to another model, or a part would be left out in
    silence."""
    if _is_unconverted(evidence):
        return
    for where, names in by_layer(name for name in _unused(evidence) if name not in _tied_head(evidence)):
        found = f"{counted(len(names), 'tensor')} that the model does not use"
        advice = "take the config.json that belongs to the weights, or remove the tensors"
        yield Symptom(where, found, "only tensors of the architecture", advice, cause="unused_tensors")


@rule(Level.ERROR, "quantization", "weights", "architecture")
def tensor_refused(evidence: Evidence) -> Iterator[Symptom]:
    """A tensor is there and is not what config.json implies: another shape, packing or dtype."""
    silent = without_mode(evidence)
    by_cause: dict[str, list[Symptom]] = {}
    for path, error in refusals(evidence).items():
        if path not in silent and error.code != "quantization_undeclared":
            symptom = symptom_of(error, path, evidence.folder)
            by_cause.setdefault(f"{symptom.cause} {symptom.expected}", []).append(symptom)
    for symptoms in by_cause.values():
        for where, _ in by_layer(symptom.where for symptom in symptoms):
            first = symptoms[0]
            yield Symptom(where, first.found, first.expected, first.advice, cause=first.cause)


@rule(Level.WARNING, "weights", "architecture")
def tensor_dtype(evidence: Evidence) -> Iterator[Symptom]:
    """A norm or another vector is stored as something else than float32, float16 or bfloat16. It is cast in silence."""
    assert evidence.weights is not None
    infos = evidence.weights.infos
    kinds: dict[str, list[str]] = {}
    for slot in evidence.slots:
        info = infos.get(slot.tensor)
        if slot.kind in PLAIN_KINDS and info is not None and info.dtype not in FLOAT_DTYPES:
            kinds.setdefault(info.dtype.name, []).append(slot.tensor)
    for dtype, names in kinds.items():
        for where, _ in by_layer(names):
            yield Symptom(where, dtype, "float32, float16 or bfloat16", "write the file again with one of these")


@rule(Level.WARNING, "weights", "architecture")
def tensor_precision(evidence: Evidence) -> Iterator[Symptom]:
    """A tensor is stored with 16 bits that the family keeps in float32, because rounding changes the choice of
    experts."""
    assert evidence.weights is not None
    assert evidence.family is not None
    assert evidence.config is not None
    names = evidence.family.name_map(evidence.config)
    infos = [
        info for name, info in evidence.weights.infos.items() if not names.may_cast(name) and info.dtype.itemsize < 4
    ]
    dtypes = {info.name: info.dtype.name for info in infos}
    for where, group in by_layer(dtypes):
        yield Symptom(where, dtypes[group[0]], "float32", "convert the original again, with this tensor in float32")


@rule(Level.ERROR, "weights", "architecture")
def tied_head_stored(evidence: Evidence) -> Iterator[Symptom]:
    """The embedding is declared to be the head as well, and a head is stored, too. One of the two is not used."""
    head = _tied_head(evidence)
    if head:
        found = f"a head of its own: {listed([plain(name) for name in head])}"
        advice = "remove these tensors if they repeat the embedding, or set tie_word_embeddings to false if not"
        where = plain(min(head, key=len).rpartition(".")[0] + ".weight")
        yield Symptom(where, found, "none with tie_word_embeddings", advice, cause="unused_tensors")


@rule(Level.NOTE, "weights", "architecture")
def head_repeats_embedding(evidence: Evidence) -> Iterator[Symptom]:
    """The head holds the same bytes as the embedding. Tied, the file would be smaller by that much."""
    assert evidence.weights is not None
    assert evidence.architecture is not None
    head, infos = evidence.architecture.head, evidence.weights.infos
    embedding = f"{evidence.architecture.prefix}{evidence.architecture.embedding}.weight"
    if head is None or f"{head}.weight" not in infos or embedding not in infos:
        return
    if same_bytes(evidence.weights.tensors[f"{head}.weight"], evidence.weights.tensors[embedding]):
        saved = sum(
            infos[name].nbytes for part in ("weight", "scales", "biases") if (name := f"{head}.{part}") in infos
        )
        advice = "set tie_word_embeddings to true and remove the head, if both were trained as one"
        yield Symptom(plain(head), f"a copy of the embedding, {size(saved)}", "a head of its own, or none", advice)


def _missing(evidence: Evidence) -> list[Slot]:
    assert evidence.weights is not None
    return [slot for slot in evidence.slots if slot.tensor not in evidence.weights.infos]


def _unused(evidence: Evidence) -> list[str]:
    assert evidence.weights is not None
    used: set[str] = set()
    for slot in evidence.slots:
        used.update((slot.tensor, *(f"{slot.path}.{leaf}" for leaf in ("scales", "biases", "global_scale"))))
    return [name for name in evidence.weights.names if name not in used and not evidence.is_dropped(name)]


def _tied_head(evidence: Evidence) -> list[str]:
    """The tensors of a head that a tied model does not use."""
    assert evidence.architecture is not None
    if evidence.architecture.head is not None:
        return []
    leaves = tuple(f"lm_head.{leaf}" for leaf in ("weight", "scales", "biases", "bias"))
    return [name for name in _unused(evidence) if name.endswith(leaves)]


def _is_unconverted(evidence: Evidence) -> bool:
    """Would the family's map turn these names into the missing ones?"""
    assert evidence.weights is not None
    assert evidence.family is not None
    assert evidence.config is not None
    missing = {slot.tensor for slot in _missing(evidence)}
    if not missing:
        return False
    try:
        targets = {target.name for target in plan(evidence.weights.infos, evidence.family.name_map(evidence.config))}
    except CoterieError:
        return False
    return len(missing - targets) <= len(missing) // 2
