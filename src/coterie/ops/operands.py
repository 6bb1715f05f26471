"""A quantised argument at the door: given as MLX does, in parts, or as one `Packed`."""

import numpy as np

from coterie.arrays import Array, Kind
from coterie.errors import ArgumentError
from coterie.formats import Packed
from coterie.ops import checks, dispatch


def as_packed(
    w: Array | Packed,
    scales: Array | None,
    biases: Array | None,
    group_size: int | None,
    bits: int | None,
    mode: str,
) -> Packed:
    """The one record of the quantised argument of a call."""
    if not isinstance(w, Packed):
        if scales is None:
            raise ArgumentError("scales are missing; codes need them, only a Packed stands alone", code="packed_scales")
        return Packed(w, scales, biases, bits, group_size, mode)
    if scales is not None or biases is not None or group_size is not None or bits is not None or mode != "affine":
        raise ArgumentError(
            "w is a Packed, which knows its scales, biases and format; leave them out of the call", code="packed_twice"
        )
    return w


def kind_with(x: Array, packed: Packed) -> Kind:
    """The one kind of x and of the packed matrix."""
    if type(x) is np.ndarray and packed.kind == "numpy":
        return "numpy"
    return dispatch.kind_of_both(x, packed.codes, ("x", "w"))


def result_dtype(x: Array, packed: Packed) -> str:
    """MLX's rule: x's dtype, promoted with that of affine scales."""
    dtype = checks.float_dtype(x, "x")
    if packed.format.mode != "affine":
        return dtype
    return checks.promoted(dtype, checks.float_dtype(packed.scales, "scales"))


def inner_and_outer(x: Array, packed: Packed, transpose: bool) -> tuple[int, int]:
    """The axis that is summed over and the one that is left, checked against the last axis of x."""
    n, k = packed.shape[-2:]
    inner, outer = (k, n) if transpose else (n, k)
    if not x.shape or x.shape[-1] != inner:
        raise checks.shape_error(
            f"x is {list(x.shape)} and the quantised matrix is {list(packed.shape)} ({packed.format}); with "
            f"transpose={transpose} the last axis of x must be {inner}"
        )
    return inner, outer
