"""Source tensors as a target takes them: their layout undone, their part cut out. Shapes first, then arrays."""

from typing import Any

import numpy as np

from coterie.checkpoint.header import TensorInfo
from coterie.checkpoint.names import HeadPart, Source
from coterie.errors import CheckpointError
from coterie.formats import Format

BLOCKS_FORMAT = Format.resolve("mxfp4", None, None)
"""What "mxfp4 blocks" hold."""

_BLOCK_BYTES = 16
_WORD = np.dtype("<u4")


def shape_and_dtype(info: TensorInfo, source: Source) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Of the array that `array_of` makes; `CheckpointError` for a tensor that the layout or the part does not fit."""
    shape, dtype = list(info.shape), np.dtype(info.dtype)
    if source.layout == "transposed":
        if len(shape) < 2:
            raise _wrong(info, "a matrix, or a stack of them", "layout_shape")
        shape[-2:] = shape[:-3:-1]
    elif source.layout == "mxfp4 blocks":
        if len(shape) < 3 or shape[-1] != _BLOCK_BYTES or dtype != np.uint8:
            raise _wrong(info, f"bytes [..., rows, groups, {_BLOCK_BYTES}] of mxfp4 codes", "layout_shape")
        shape[-2:] = [shape[-2] * _BLOCK_BYTES // _WORD.itemsize]
        dtype = np.dtype(np.uint32)
    part = source.part
    if isinstance(part, HeadPart):
        if len(shape) != 2 or shape[0] != part.n_heads * part.n_rows:
            rows = f"{part.n_rows} rows for each of {part.n_heads} heads; the config is not this checkpoint's"
            raise _wrong(info, f"[{part.n_heads * part.n_rows}, ...]: {rows}", "split_shape")
        return part.shape(shape[1]), dtype
    if part is not None:
        _, n, axis = part
        if not -len(shape) <= axis < len(shape) or shape[axis] % n:
            raise _wrong(info, f"one that {n} equal parts along axis {axis} make up", "split_shape")
        shape[axis] //= n
    return tuple(shape), dtype


def array_of(array: np.ndarray, source: Source) -> np.ndarray:
    """The source's tensor with its layout undone and its part cut out; a view where that is possible."""
    if source.layout == "transposed":
        array = array.swapaxes(-1, -2)
    elif source.layout == "mxfp4 blocks":
        words = np.ascontiguousarray(array).reshape(*array.shape[:-2], -1).view(_WORD)
        array = words.astype(np.uint32, copy=False)
    part = source.part
    if part is None:
        return array
    if isinstance(part, HeadPart):
        cut = array.reshape(part.n_heads, part.n_rows, -1)[:, part.begin : part.end]
        return np.ascontiguousarray(cut.swapaxes(1, 2) if part.transposed else cut)
    index, n, axis = part
    if source.in_turn:
        places = [slice(None)] * array.ndim
        places[axis] = slice(index, None, n)
        return array[tuple(places)]
    return np.split(array, n, axis)[index]


def _wrong(info: TensorInfo, expected: str, code: str) -> CheckpointError:
    return CheckpointError(
        f"{info.name}: found {info.dtype} of shape {list(info.shape)}, expected {expected}", code=code
    )
