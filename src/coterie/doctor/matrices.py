"""The matrices that the architecture asks for, as they are stored, as far as they can be read."""

from dataclasses import dataclass

from coterie.arrays import dtype_name
from coterie.doctor.evidence import Evidence
from coterie.errors import CoterieError
from coterie.formats import Format, Packed
from coterie.models.weights import PLAIN_KINDS, Slot, layer_prefix, stored


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix, or a stack of them. format: None where it is not quantised. module: the path inside its layer."""

    slot: Slot
    module: str
    format: Format | None
    dtype: str
    nbytes: int

    @property
    def path(self) -> str:
        """The module's whole path."""
        return self.slot.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape [..., outputs, inputs]."""
        return self.slot.shape


def matrices(evidence: Evidence) -> list[Matrix]:
    """Every matrix that is stored and can be read; needs `architecture` and `weights`."""
    assert evidence.architecture is not None
    assert evidence.weights is not None
    found = []
    for slot in evidence.slots:
        if slot.kind in PLAIN_KINDS or slot.tensor not in evidence.weights.infos:
            continue
        try:
            value = stored(slot, evidence.weights)
        except CoterieError:
            continue  # the rule `tensor_refused` tells
        fmt = value.format if isinstance(value, Packed) else None
        dtype = dtype_name(value.codes if isinstance(value, Packed) else value)
        found.append(Matrix(slot, _module(slot, evidence), fmt, dtype, value.nbytes))
    return found


def refusals(evidence: Evidence) -> dict[str, CoterieError]:
    """{module path: why its tensor cannot be used} of what is stored; needs `architecture` and `weights`."""
    assert evidence.weights is not None
    found: dict[str, CoterieError] = {}
    for slot in evidence.slots:
        if slot.tensor in evidence.weights.infos:
            try:
                stored(slot, evidence.weights)
            except CoterieError as error:
                found[slot.path] = error
    return found


def without_mode(evidence: Evidence) -> list[str]:
    """Paths whose own entry has no mode and that are not stored as affine, which is what that means."""
    assert evidence.weights is not None
    rules, infos = evidence.quantization, evidence.weights.infos
    if rules is None or rules.default is None or rules.default.mode == "affine":
        return []
    entries = [
        path for path, entry in evidence.entries.items() if isinstance(entry, dict) and entry.get("mode") is None
    ]
    scales = {path: infos.get(f"{path}.scales") for path in entries}
    return [path for path, info in scales.items() if info is not None and info.dtype.itemsize == 1]


def module_paths(evidence: Evidence) -> set[str]:
    """The paths of all modules of the architecture."""
    return {slot.path for slot in evidence.slots}


def _module(slot: Slot, evidence: Evidence) -> str:
    assert evidence.architecture is not None
    prefix = evidence.architecture.prefix if slot.layer is None else layer_prefix(evidence.architecture, slot.layer)
    return slot.path.removeprefix(prefix)
