"""The same numbers as arrays of every kind, and what every test of an operation asks of them."""

from typing import Any

import numpy as np
import pytest

from coterie.arrays import FLOAT_DTYPES, Kind, as_numpy, dtype_name, from_numpy, kind_of
from coterie.errors import BackendUnavailableError, UnsupportedError
from coterie.formats import AFFINE_BITS, AFFINE_GROUP_SIZES, Format, Packed, codec
from coterie.ops import dispatch

ON_A_GPU = pytest.param("cuda", marks=pytest.mark.cuda)

KINDS_HERE: tuple[Kind, ...] = ("numpy", "torch", "mlx")
KINDS = (*KINDS_HERE, ON_A_GPU)
"""All kinds of arrays; tests with the last one are skipped where there is no GPU."""

FORMATS = [Format.resolve("affine", bits, group) for bits in AFFINE_BITS for group in AFFINE_GROUP_SIZES] + [
    Format.resolve(mode) for mode in ("mxfp4", "mxfp8", "nvfp4")
]
"""All formats there are."""

FEW_FORMATS = [
    Format.resolve("affine", 4, 64),
    Format.resolve("affine", 3, 32),
    Format.resolve("affine", 8, 128),
    *FORMATS[-3:],
]
"""One of each way to decode."""

DTYPES = tuple(dtype.name for dtype in FLOAT_DTYPES)


def ready(kind: Kind, *verbs: str) -> None:
    """Import the kind's library; skip, with the reason, where the library or a verb of the back end is not there."""
    if kind != "numpy":
        pytest.importorskip("mlx.core" if kind == "mlx" else "torch")
    for verb in verbs:
        try:
            dispatch.verb(verb, kind)
        except (UnsupportedError, BackendUnavailableError) as reason:
            pytest.skip(str(reason))


def give(array: np.ndarray, kind: Kind) -> Any:
    """`array` as `kind`; PyTorch gets memory of its own, so that nothing is shared by accident."""
    return from_numpy(array.copy(), kind)


def take(result: Any, kind: Kind, dtype: str) -> np.ndarray:
    """The result as NumPy, once it is certain that it has the kind and the dtype that were promised."""
    assert kind_of(result) == kind
    assert dtype_name(result) == dtype
    return as_numpy(result)


def floats(rng: np.random.Generator, shape: tuple[int, ...], dtype: str = "float32", scale: float = 1.0) -> np.ndarray:
    """Normal numbers, `scale` wide, in any float dtype."""
    values: np.ndarray = (rng.standard_normal(shape) * scale).astype(dispatch.numpy_dtype(dtype))
    return values


def pack(w: np.ndarray, fmt: Format, kind: Kind = "numpy", scale_dtype: str | None = None) -> Packed:
    """w quantised by the NumPy codec; affine scales and biases in `scale_dtype`."""
    codes, scales, biases = codec.quantize(w, fmt)
    if scale_dtype is not None and biases is not None:
        dtype = dispatch.numpy_dtype(scale_dtype)
        scales, biases = scales.astype(dtype), biases.astype(dtype)
    parts = [None if part is None else give(part, kind) for part in (codes, scales, biases)]
    return Packed(*parts, bits=fmt.bits, group_size=fmt.group_size, mode=fmt.mode)
