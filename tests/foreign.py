"""Stand-ins for JAX and CuPy: as much of their interfaces as the bridges use, with the same refusals."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from coterie.arrays import bfloat16, torch_as_numpy

CPU, CUDA = 1, 2


class JaxArray:
    """Read-only, on the CPU or pretending to be on a GPU; NumPy's DLPack does not know its bfloat16."""

    def __init__(self, values: np.ndarray, device_type: int = CPU) -> None:
        self.values = values.view()
        self.values.flags.writeable = False
        self._device_type, self.device = device_type, f"{device_type}:0"
        self.shape, self.dtype, self.nbytes = self.values.shape, self.values.dtype, self.values.nbytes

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device_type, 0

    def __dlpack__(self, **options: Any) -> Any:
        if self._device_type != CPU:
            raise AssertionError("PyTorch would ask CUDA; the tests answer in its place")
        if self.dtype == bfloat16:
            raise BufferError("NumPy knows no bfloat16")
        return self.values.__dlpack__(**options)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        assert self._device_type == CPU, "arrays on a GPU are not copied to the host"
        assert dtype is None
        assert not copy
        return self.values

    def __getitem__(self, place: Any) -> "JaxArray":
        return JaxArray(self.values[place], self._device_type)


def fake_jax() -> Any:
    """A module in the place of `jax`."""
    return SimpleNamespace(
        Array=JaxArray,
        local_devices=lambda backend: [backend],
        device_put=lambda array, device: JaxArray(array, {"cpu": CPU}[device]),
        dlpack=SimpleNamespace(from_dlpack=lambda tensor: JaxArray(torch_as_numpy(tensor.cpu()), CUDA)),
    )


class CupyArray:
    """Memory that a tensor of PyTorch shares."""

    def __init__(self, tensor: Any) -> None:
        self.tensor, self.device = tensor, str(tensor.device)
        self.shape, self.nbytes = tuple(tensor.shape), tensor.nbytes
        self.dtype = np.dtype(bfloat16 if "bfloat16" in str(tensor.dtype) else str(tensor.dtype).rpartition(".")[2])

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        if self.dtype == bfloat16:
            raise BufferError("dtype is not supported for dlpack export")
        return self.tensor.__dlpack__(**options)

    def view(self, dtype: Any) -> "CupyArray":
        import torch

        return CupyArray(self.tensor.view({np.dtype(np.int16): torch.int16, bfloat16: torch.bfloat16}[np.dtype(dtype)]))

    def __getitem__(self, place: Any) -> "CupyArray":
        return CupyArray(self.tensor[place])


def fake_cupy() -> Any:
    """A module in the place of `cupy`."""
    import torch

    def from_dlpack(tensor: Any) -> CupyArray:
        if tensor.dtype == torch.bfloat16:
            raise NotImplementedError("CuPy does not support bfloat16 yet")
        return CupyArray(tensor)

    return SimpleNamespace(ndarray=CupyArray, from_dlpack=from_dlpack)
