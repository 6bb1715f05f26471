"""Which back end computes: chosen by the arrays' kind, found by name only when first needed.

    NumPy; PyTorch and JAX on the CPU          coterie.backends.cpu    (all seen as NumPy arrays, without a copy)
    PyTorch, JAX and CuPy on a GPU             coterie.backends.cuda   (all seen as tensors of PyTorch, without a copy)
    MLX                                        coterie.backends.mlx

A back end is a module with one function a verb. The doors in `ops/` check arguments and bring them into a canonical
form first: `coterie.ops.forms`. A back end that needs a machine of its own has a function `check_machine`, which raises
`BackendUnavailableError`.
"""

import importlib
from types import ModuleType
from typing import Any

import numpy as np

from coterie.arrays import ON_A_GPU, Array, Kind, bfloat16, common_kind, from_numpy, kind_of
from coterie.errors import BackendUnavailableError, UnsupportedError
from coterie.formats import Packed

_BACKEND_OF: dict[Kind, str] = {
    "numpy": "cpu",
    "torch": "cpu",
    "jax": "cpu",
    "cuda": "cuda",
    "jax_cuda": "cuda",
    "cupy": "cuda",
    "mlx": "mlx",
}
_HOW_TO_GET = {
    "cpu": "it needs numba: pip install coterie",
    "mlx": "it needs a working mlx: pip install 'coterie[mlx]'",
    "cuda": "it needs PyTorch built for CUDA, and Triton: pip install 'coterie[cuda]'",
}
_MODULES: dict[str, ModuleType] = {}
_NUMPY_DTYPES = {"bfloat16": bfloat16}


def get(name: str) -> ModuleType:
    """The back end called `name`: "cpu", "mlx" or "cuda". `BackendUnavailableError` says why it is not there and how to
    get it.
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
    if name not in _HOW_TO_GET:
        raise BackendUnavailableError(f"there is no back end {name!r}; expected one of {', '.join(_HOW_TO_GET)}")
    try:
        module = importlib.import_module(f"coterie.backends.{name}")
    except ImportError as cause:
        raise BackendUnavailableError(
            f"the {name} back end cannot be imported ({cause}); {_HOW_TO_GET[name]}"
        ) from cause
    if hasattr(module, "check_machine"):
        module.check_machine()
    return _MODULES.setdefault(name, module)


def available() -> dict[str, str | None]:
    """Each back end by name: None if it can be used here, otherwise the reason why not. Imports what it looks at."""
    reasons: dict[str, str | None] = {}
    for name in _HOW_TO_GET:
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
    kind = kind_of(first)
    if kind != kind_of(second) or kind in ON_A_GPU:
        common_kind(**{names[0]: first, names[1]: second})
    return kind


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
