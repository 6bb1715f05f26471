"""Which back end computes: chosen by the arrays' kind, found by name only when first needed.

    NumPy arrays and CPU tensors of PyTorch   coterie.backends.cpu    (tensors are seen as NumPy arrays, without a copy)
    MLX arrays                                coterie.backends.mlx

A back end is a module with one function a verb. The doors in `ops/` check arguments and bring them into a canonical
form first:

* cpu: C-contiguous aligned NumPy arrays; leading axes are flattened into one (T tokens, B matrices, R rows), indices
are uint32
  [R] and in range, nothing is empty. Results have the canonical shape; the door restores the caller's.
* mlx: the caller's own mx.arrays and shapes; indices are checked but not flattened, as MLX's operations broadcast
themselves.
"""

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from coterie.arrays import Array, Kind, as_numpy, bfloat16, from_numpy, kind_of
from coterie.errors import ArgumentError, BackendUnavailableError, UnsupportedError
from coterie.formats import Packed

_BACKEND_OF: dict[Kind, str] = {"numpy": "cpu", "torch": "cpu", "mlx": "mlx"}
_HOW_TO_GET = {
    "cpu": "it needs numba: pip install coterie",
    "mlx": "it needs a working mlx: pip install 'coterie[mlx]'",
}
_MODULES: dict[str, ModuleType] = {}
_NUMPY_DTYPES = {"bfloat16": bfloat16}


def get(name: str) -> ModuleType:
    """The back end called `name` ("cpu" or "mlx"); `BackendUnavailableError` says why it is not there and how to get
    it.
    """
    module = _MODULES.get(name)
    return _load(name) if module is None else module


def decoder(name: str, precision: str = "default") -> Any:
    """The verbs of a whole decoder on the back end called `name`, its products computed with `precision`; they wrap its
    own, so its errors are those of `get`.
    """
    get(name)
    return importlib.import_module(f"coterie.backends.{name}.decoder").verbs(precision)


def _load(name: str) -> ModuleType:
    if name == "cuda":
        raise BackendUnavailableError(
            "this version has no CUDA back end; use the cpu back end, and move tensors there with .cpu()"
        )
    if name not in _HOW_TO_GET:
        raise BackendUnavailableError(f"there is no back end {name!r}; expected one of {', '.join(_HOW_TO_GET)}")
    try:
        module = importlib.import_module(f"coterie.backends.{name}")
    except ImportError as cause:
        raise BackendUnavailableError(
            f"the {name} back end cannot be imported ({cause}); {_HOW_TO_GET[name]}"
        ) from cause
    return _MODULES.setdefault(name, module)


def available() -> dict[str, str | None]:
    """Each back end by name: None if it can be used here, otherwise the reason why not. Imports what it looks at."""
    reasons: dict[str, str | None] = {}
    for name in (*_HOW_TO_GET, "cuda"):
        try:
            get(name)
            reasons[name] = None
        except BackendUnavailableError as refusal:
            reasons[name] = str(refusal)
    return reasons


def verb(name: str, kind: Kind) -> Any:
    """The function `name` of the back end that computes on arrays of `kind`."""
    module = get(_BACKEND_OF[kind])
    try:
        return getattr(module, name)
    except AttributeError:
        raise UnsupportedError(f"the {_BACKEND_OF[kind]} back end has no {name}") from None


def kind_of_both(first: Array, second: Array, names: tuple[str, str]) -> Kind:
    """The kind of two arrays that must agree; the short way through for two NumPy arrays."""
    if type(first) is np.ndarray and type(second) is np.ndarray:
        return "numpy"
    kind, other = kind_of(first), kind_of(second)
    if kind != other:
        raise mixed_kinds({names[0]: kind, names[1]: other})
    return kind


def mixed_kinds(kinds: dict[str, str]) -> ArgumentError:
    """The error for arrays of different libraries in one call; `kinds` says which argument is what."""
    found = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
    return ArgumentError(f"mixed kinds of arrays in one call: {found}; convert them to one kind", code="mixed_kinds")


def dense(array: np.ndarray) -> np.ndarray:
    """The array itself if it is C-contiguous and aligned, else a copy that is."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def native(array: Array, kind: Kind) -> Array:
    """What the back end is given for `array`: a dense NumPy view for the CPU (a copy for strided ones), MLX's own for
    MLX.
    """
    if kind == "numpy":
        return dense(array)
    return array if kind == "mlx" else dense(as_numpy(array))


def native_packed(packed: Packed) -> Packed:
    """The packed matrix as the back end takes it: itself for MLX; for the CPU with NumPy parts whose rows are
    contiguous.

    Rows may lie anywhere, at any alignment, as they do in a mapped file; only strided rows are copied. The result is
    remembered by `packed`, so that this and what a back end derives from it happens once.
    """
    if packed.kind == "mlx":
        return packed
    twin = packed.derived.get("native")
    if twin is None:
        parts = [
            None if part is None else _contiguous(as_numpy(part))
            for part in (packed.codes, packed.scales, packed.biases)
        ]
        same = parts[0] is packed.codes and parts[1] is packed.scales and parts[2] is packed.biases
        twin = packed if same else packed_like(packed, *parts)
        if twin is not packed:
            packed.derived["native"] = twin
    return twin


def native_weight(array: Array, kind: Kind) -> Array:
    """`native` for a plain weight, which may lie at any alignment, as in a mapped file; strided ones are copied."""
    return array if kind == "mlx" else _contiguous(as_numpy(array))


def _contiguous(array: np.ndarray) -> np.ndarray:
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def packed_like(packed: Packed, codes: Any, scales: Any, biases: Any) -> Packed:
    """A `Packed` of other parts in the same format that are known to fit: made without its checks."""
    twin = object.__new__(Packed)
    for name, value in (("codes", codes), ("scales", scales), ("biases", biases), ("derived", {})):
        object.__setattr__(twin, name, value)
    for name in ("bits", "group_size", "mode", "format"):
        object.__setattr__(twin, name, getattr(packed, name))
    object.__setattr__(twin, "kind", kind_of(codes))
    return twin


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a plain dtype name, bfloat16 included."""
    return _NUMPY_DTYPES.get(name) or np.dtype(name)


def zeros(shape: tuple[int, ...], dtype: str, kind: Kind) -> Array:
    """Zeros of any kind: the answer to a question about nothing."""
    return from_numpy(np.zeros(shape, numpy_dtype(dtype)), kind)
