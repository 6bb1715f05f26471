"""Which kind of array is this? Found without importing what the user has not imported: a library that was never
imported cannot have made the array in hand, so `sys.modules` is all that is asked.

    numpy                NumPy
    torch, cuda          PyTorch, on the CPU and on a GPU of NVIDIA's or AMD's (PyTorch calls both cuda)
    mlx                  MLX, on MLX's device
    jax, jax_cuda        JAX, on the CPU and on a GPU
    cupy                 CuPy, always on a GPU
"""

import functools
import sys
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np

from coterie.errors import ArgumentError

Array: TypeAlias = Any
"""An array of any library that `Kind` knows."""

Kind = Literal["numpy", "torch", "cuda", "mlx", "jax", "jax_cuda", "cupy"]

ON_A_GPU: frozenset[Kind] = frozenset({"cuda", "jax_cuda", "cupy"})
"""The kinds that compute on what PyTorch calls cuda."""

_NAMES: dict[Kind, str] = {
    "torch": "torch on the CPU",
    "cuda": "torch on cuda",
    "jax": "jax on the CPU",
    "jax_cuda": "jax on cuda",
}
"""How errors call a kind, where its own name would not tell it from others."""

_KIND_OF_TENSOR: dict[bool, Kind] = {False: "torch", True: "cuda"}
"""The kind of a tensor of PyTorch, by whether it lies on a GPU."""

_DLPACK_CPU = 1
_KIND_OF_JAX: dict[int, Kind] = {_DLPACK_CPU: "jax", 2: "jax_cuda", 10: "jax_cuda"}
"""The kind of an array of JAX, by the device type that it gives to DLPack: CPU, CUDA, ROCm."""

bfloat16 = np.dtype(ml_dtypes.bfloat16)

FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), bfloat16)
"""The dtypes of activations, and of affine scales and biases."""


def kind_of(array: Array) -> Kind:
    """Name the library that `array` belongs to; `ArgumentError` for anything else (lists and scalars included)."""
    if isinstance(array, np.ndarray):
        return "numpy"
    if _is_a(array, "torch", "Tensor"):
        return _KIND_OF_TENSOR[array.is_cuda]
    if _is_a(array, "mlx.core", "array"):
        return "mlx"
    if _is_a(array, "jax", "Array"):
        return _kind_of_jax(array)
    if _is_a(array, "cupy", "ndarray"):
        return "cupy"
    raise ArgumentError(
        f"found {type(array).__module__}.{type(array).__qualname__}, expected a NumPy array, a PyTorch tensor or an "
        f"array of MLX, JAX or CuPy; {_way_out(array)}",
        code="array_kind",
    )


def _is_a(array: Array, library: str, name: str) -> bool:
    module = sys.modules.get(library)
    kind = None if module is None else getattr(module, name, None)
    return kind is not None and isinstance(array, kind)


def _kind_of_jax(array: Array) -> Kind:
    if not hasattr(array, "__dlpack_device__"):
        raise ArgumentError(
            "found an array of JAX that is being traced and has no numbers yet; call the operation outside of jax.jit, "
            "or through jax.pure_callback",
            code="array_kind",
        )
    try:
        device_type = int(array.__dlpack_device__()[0])
    except BufferError as cause:
        raise ArgumentError(
            f"found an array of JAX on several devices ({cause}); gather it on one first, with jax.device_put",
            code="array_kind",
        ) from None
    if device_type not in _KIND_OF_JAX:
        raise ArgumentError(
            "found an array of JAX that is neither on the CPU nor on a GPU; copy it to the CPU first: "
            "jax.device_put(x, jax.devices('cpu')[0])",
            code="array_kind",
        )
    return _KIND_OF_JAX[device_type]


def _way_out(array: Array) -> str:
    """How an array of a library that is not known gets here: through DLPack, or by a copy."""
    if not hasattr(array, "__dlpack_device__"):
        return "convert it first, for example with numpy.asarray"
    if int(array.__dlpack_device__()[0]) != _DLPACK_CPU:
        return "it lives on a GPU: torch.from_dlpack sees the same memory without a copy, as a tensor on cuda"
    return "numpy.from_dlpack sees the same memory without a copy, and results go back by the library's own from_dlpack"


def common_kind(**arrays: Array | None) -> Kind:
    """The one kind of all given arrays (None is skipped); mixed kinds, or arrays on more than one GPU, are an
    `ArgumentError` that names who is what.
    """
    given = {name: array for name, array in arrays.items() if array is not None}
    kinds = {name: kind_of(array) for name, array in given.items()}
    if not kinds:
        raise ArgumentError("no array was given", code="array_kind")
    kind = next(iter(kinds.values()))
    if any(other != kind for other in kinds.values()):
        raise mixed_kinds(kinds)
    if kind in ON_A_GPU:
        _check_devices(given)
    return kind


def mixed_kinds(kinds: dict[str, Kind]) -> ArgumentError:
    """The error for arrays of different kinds in one call; `kinds` says which argument is what."""
    found = ", ".join(f"{name} is {_NAMES.get(kind, kind)}" for name, kind in kinds.items())
    return ArgumentError(f"mixed kinds of arrays in one call: {found}; convert them to one kind", code="mixed_kinds")


def _check_devices(arrays: dict[str, Array]) -> None:
    devices = {name: str(array.device) for name, array in arrays.items()}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} is on {device}" for name, device in devices.items())
        raise ArgumentError(f"more than one GPU in one call: {found}; move them to one", code="mixed_devices")


def device_of(array: Array) -> str:
    """ "cpu" or "cuda"; for other tensors of PyTorch their device type; "mlx" for MLX."""
    kind = kind_of(array)
    if kind in ("torch", "mlx"):
        return "mlx" if kind == "mlx" else str(array.device.type)
    return "cuda" if kind in ON_A_GPU else "cpu"


def dtype_name(array: Array) -> str:
    """The dtype's plain name, the same for every kind: "float32", "bfloat16", "uint32", ..."""
    return _plain_name(array.dtype)


@functools.cache
def _plain_name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]
