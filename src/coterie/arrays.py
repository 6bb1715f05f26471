"""Which kind of array is this? NumPy, PyTorch or MLX, found without importing what the user has not imported.

A library that was never imported cannot have made the array in hand, so `sys.modules` is all that is asked. CPU tensors
of PyTorch become NumPy views of the same memory (bfloat16 through ml_dtypes), and results go back the same way: no
copy. Tensors on a GPU of NVIDIA's or AMD's are a kind of their own, "cuda", as PyTorch calls both.
"""

import functools
import sys
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np

from coterie.errors import ArgumentError, BackendUnavailableError

Array: TypeAlias = Any
"""A NumPy array, a PyTorch tensor or an MLX array."""

Kind = Literal["numpy", "torch", "cuda", "mlx"]

_KIND_OF_TENSOR: dict[bool, Kind] = {False: "torch", True: "cuda"}
"""The kind of a tensor of PyTorch, by whether it lies on a GPU."""

_NAMES: dict[Kind, str] = {"torch": "torch on the CPU", "cuda": "torch on cuda"}
"""How errors call a kind, where its own name would not tell it from others."""

bfloat16 = np.dtype(ml_dtypes.bfloat16)

FLOAT_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), bfloat16)
"""The dtypes of activations, and of affine scales and biases."""


def _module(name: str) -> Any | None:
    return sys.modules.get(name)


def kind_of(array: Array) -> Kind:
    """Name the library that `array` belongs to; `ArgumentError` for anything else (lists and scalars included)."""
    if isinstance(array, np.ndarray):
        return "numpy"
    torch = _module("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        return _KIND_OF_TENSOR[array.is_cuda]
    mlx = _module("mlx.core")
    if mlx is not None and isinstance(array, mlx.array):
        return "mlx"
    raise ArgumentError(
        f"found {type(array).__module__}.{type(array).__qualname__}, expected a NumPy array, a PyTorch tensor or an "
        f"MLX array; {_way_out(array)}",
        code="array_kind",
    )


_DLPACK_CPU = 1


def _way_out(array: Array) -> str:
    """How an array of another library gets here: through DLPack where it lives on the CPU (JAX), else by a copy."""
    if not hasattr(array, "__dlpack_device__"):
        return "convert it first, for example with numpy.asarray"
    if int(array.__dlpack_device__()[0]) != _DLPACK_CPU:
        return "it lives on a GPU: torch.from_dlpack sees the same memory without a copy, as a tensor on cuda"
    return "numpy.from_dlpack sees the same memory without a copy, and results go back by the library's own from_dlpack"


def common_kind(**arrays: Array | None) -> Kind:
    """The one kind of all given arrays (None is skipped); mixed kinds, or tensors on more than one GPU, are an
    `ArgumentError` that names who is what.
    """
    given = {name: array for name, array in arrays.items() if array is not None}
    kinds = {name: kind_of(array) for name, array in given.items()}
    if not kinds:
        raise ArgumentError("no array was given", code="array_kind")
    kind = next(iter(kinds.values()))
    if any(other != kind for other in kinds.values()):
        raise mixed_kinds(kinds)
    if kind == "cuda":
        _check_devices(given)
    return kind


def mixed_kinds(kinds: dict[str, Kind]) -> ArgumentError:
    """The error for arrays of different kinds in one call; `kinds` says which argument is what."""
    found = ", ".join(f"{name} is {_NAMES.get(kind, kind)}" for name, kind in kinds.items())
    return ArgumentError(f"mixed kinds of arrays in one call: {found}; convert them to one kind", code="mixed_kinds")


def _check_devices(arrays: dict[str, Array]) -> None:
    devices = {name: array.device for name, array in arrays.items()}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{name} is on {device}" for name, device in devices.items())
        raise ArgumentError(f"more than one GPU in one call: {found}; move them to one", code="mixed_devices")


def device_of(array: Array) -> str:
    """ "cpu" for NumPy; the tensor's device type for PyTorch ("cpu", "cuda", ...); "mlx" for MLX."""
    kind = kind_of(array)
    if kind in ("torch", "cuda"):
        return str(array.device.type)
    return "mlx" if kind == "mlx" else "cpu"


def dtype_name(array: Array) -> str:
    """The dtype's plain name, the same for every kind: "float32", "bfloat16", "uint32", ..."""
    return _plain_name(array.dtype)


@functools.cache
def _plain_name(dtype: Any) -> str:
    return str(dtype).rpartition(".")[2]


def as_numpy(array: Array) -> np.ndarray:
    """A NumPy array over the same memory: no copy for NumPy and for CPU tensors of PyTorch, bfloat16 included.

    A tensor that requires grad is seen without its graph: Coterie's operations are for inference and have no gradient.
    MLX arrays and tensors on a GPU are copied, which waits for them: no operation does that to activations or weights.
    """
    kind = kind_of(array)
    if kind == "numpy":
        return array  # type: ignore[no-any-return]
    if kind == "mlx":
        return _mlx_as_numpy(array)
    return torch_as_numpy(array if kind == "torch" else array.cpu())


def torch_as_numpy(tensor: Any) -> np.ndarray:
    """`as_numpy` of what is known to be a tensor of PyTorch, which must lie on the CPU."""
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise BackendUnavailableError(
            f"the tensor lives on {tensor.device}; Coterie computes on the CPU and on what PyTorch calls cuda: move it "
            "with .cpu() or .cuda()"
        )
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(bfloat16)
    return np.asarray(tensor.numpy())


def _mlx_as_numpy(array: Any) -> np.ndarray:
    mlx = sys.modules["mlx.core"]
    if array.dtype == mlx.bfloat16:
        return np.array(array.view(mlx.uint16)).view(bfloat16)
    return np.array(array)


def from_numpy(array: np.ndarray, kind: Kind) -> Array:
    """Hand `array` over as the given kind; tensors on the CPU share its memory, MLX and a GPU get a copy."""
    if kind == "numpy":
        return array
    if kind == "torch":
        return numpy_as_torch(array)
    if kind == "cuda":
        return numpy_as_torch(array).cuda()
    mlx = sys.modules["mlx.core"]
    if array.dtype == bfloat16:
        return mlx.array(array.view(np.uint16)).view(mlx.bfloat16)
    return mlx.array(array)


def numpy_as_torch(array: np.ndarray) -> Any:
    """The array as a tensor of PyTorch over the same memory."""
    torch = sys.modules["torch"]
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
