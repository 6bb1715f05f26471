"""NumPy arrays as tensors on the device where the kernels run, and back."""

from typing import Any

import numpy as np

from coterie.arrays import as_numpy, numpy_as_torch, torch_as_numpy
from coterie.formats import Format, Packed, codec


def on(device: str, array: np.ndarray) -> Any:
    """The array as a tensor of its own on `device`, bfloat16 included."""
    return numpy_as_torch(np.array(array)).to(device)


def off(tensor: Any) -> np.ndarray:
    """The tensor's numbers on the host."""
    return torch_as_numpy(tensor.cpu())


def packed_on(device: str, w: np.ndarray, fmt: Format) -> Packed:
    """w [..., N, K], quantised by the codec of `coterie.formats`."""
    parts = [None if part is None else on(device, part) for part in codec.quantize(w, fmt)]
    return Packed(*parts, fmt.bits, fmt.group_size, fmt.mode)


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays are equal to the bit, but for the bits of NaN."""
    found, expected = as_numpy(found), as_numpy(expected)
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    differ = found.view(f"u{found.itemsize}") != expected.view(f"u{expected.itemsize}")
    return not (differ & ~((found != found) & (expected != expected))).any()
