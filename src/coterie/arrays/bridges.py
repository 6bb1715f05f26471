"""The same memory as another library sees it: NumPy on the CPU, PyTorch on a GPU; what has to be copied says so.

bfloat16 is a dtype of ml_dtypes for NumPy, JAX and CuPy. NumPy's DLPack does not know it, and CuPy's not always: there
it crosses as 16-bit integers, or by the library's own way.
"""

import sys
from typing import Any

import numpy as np

from coterie.arrays.kinds import Array, Kind, bfloat16, kind_of
from coterie.errors import BackendUnavailableError


def as_numpy(array: Array) -> np.ndarray:
    """A NumPy array over the same memory: no copy for NumPy, and for PyTorch and JAX on the CPU, bfloat16 included.

    A tensor that requires grad is seen without its graph: Coterie's operations are for inference and have no gradient.
    What JAX hands over is read-only. MLX arrays and what lies on a GPU are copied, which waits for them: no operation
    does that to activations or weights.
    """
    kind = kind_of(array)
    if kind == "numpy":
        return array  # type: ignore[no-any-return]
    if kind == "mlx":
        return _mlx_as_numpy(array)
    if kind == "jax":
        return jax_as_numpy(array)
    return torch_as_numpy(array if kind == "torch" else as_torch(array, kind).cpu())


def octets(array: Array) -> Array:
    """The bytes of an array, u8 [n], where it is if it is a dense NumPy array or a dense tensor; else a NumPy copy."""
    if kind_of(array) in ("torch", "cuda"):
        return array.reshape(-1).view(sys.modules["torch"].uint8)
    return np.ascontiguousarray(as_numpy(array)).reshape(-1).view(np.uint8)


def from_numpy(array: np.ndarray, kind: Kind) -> Array:
    """Hand `array` over as the given kind. Tensors on the CPU share its memory; so do JAX arrays where it begins at a
    multiple of 64 bytes, as JAX asks; MLX and a GPU get a copy.
    """
    if kind == "numpy":
        return array
    if kind == "torch":
        return numpy_as_torch(array)
    if kind == "mlx":
        return _numpy_as_mlx(array)
    if kind == "jax":
        return numpy_as_jax(array)
    return from_torch(numpy_as_torch(array).cuda(), kind)


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


def numpy_as_torch(array: np.ndarray) -> Any:
    """The array as a tensor of PyTorch over the same memory."""
    torch = _torch()
    if array.dtype == bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def jax_as_numpy(array: Any) -> np.ndarray:
    """`as_numpy` of what is known to be an array of JAX on the CPU; it is waited for."""
    return np.asarray(array) if array.dtype == bfloat16 else np.from_dlpack(array)


def numpy_as_jax(array: np.ndarray) -> Any:
    """The array on JAX's CPU."""
    jax = sys.modules["jax"]
    return jax.device_put(array, jax.local_devices(backend="cpu")[0])


def as_torch(array: Array, kind: Kind) -> Any:
    """An array on a GPU, of a kind `ON_A_GPU`, as a tensor of PyTorch over the same memory."""
    if kind == "cuda":
        return array
    torch = _torch()
    if kind == "cupy" and array.dtype == bfloat16:
        return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def from_torch(tensor: Any, kind: Kind) -> Array:
    """A tensor on a GPU as an array of a kind `ON_A_GPU` over the same memory."""
    if kind == "cuda":
        return tensor
    if kind == "jax_cuda":
        return sys.modules["jax"].dlpack.from_dlpack(tensor)
    torch, cupy = _torch(), sys.modules["cupy"]
    if tensor.dtype == torch.bfloat16:
        return cupy.from_dlpack(tensor.view(torch.int16)).view(bfloat16)
    return cupy.from_dlpack(tensor)


def _torch() -> Any:
    """PyTorch, which computes for JAX and CuPy on a GPU too: the one library that is imported for a user."""
    try:
        import torch
    except ImportError as cause:
        raise BackendUnavailableError(
            f"arrays on a GPU are computed on through PyTorch, which cannot be imported ({cause}): pip install "
            "'coterie[cuda]'"
        ) from cause
    return torch


def _mlx_as_numpy(array: Any) -> np.ndarray:
    mlx = sys.modules["mlx.core"]
    if array.dtype == mlx.bfloat16:
        return np.array(array.view(mlx.uint16)).view(bfloat16)
    return np.array(array)


def _numpy_as_mlx(array: np.ndarray) -> Any:
    mlx = sys.modules["mlx.core"]
    if array.dtype == bfloat16:
        return mlx.array(array.view(np.uint16)).view(mlx.bfloat16)
    return mlx.array(array)
