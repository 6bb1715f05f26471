"""Affine quantisation as MLX does it: w = scale * code + bias, one scale and one bias a group, bit for bit.

All arithmetic of the quantiser is in f32, whatever the dtype of w. Codes come from the unrounded f32 scale and bias;
only what is stored is rounded to the dtype of w. The end of the range that is larger in magnitude is hit exactly and
zero is a code of its own where the range holds it: for that, scales may be negative. One bit is different: code 0 is
the minimum, 1 the maximum.
"""

import numpy as np

from coterie.errors import NumericError

_SMALLEST_SCALE = np.float32(1e-7)


def quantize_groups(groups: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f32 groups [G, group_size] to codes uint8 of the same shape, and f32 scales and biases [G], not yet rounded."""
    low, high = groups.min(-1), groups.max(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    if not np.isfinite(span).all():
        raise NumericError(
            "the matrix has NaN, infinity or a group whose range overflows float32; expected finite weights, "
            "nothing was quantised"
        )
    scales, biases = _one_bit(groups, span) if bits == 1 else _anchored(low, high, span, bits)
    codes = groups - biases[:, None]
    codes /= scales[:, None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, (1 << bits) - 1, out=codes)
    return codes.astype(np.uint8), scales, biases


def _one_bit(groups: np.ndarray, span: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bias is the first minimum: where 0 and -0 both stand in a group, the first of them gives the sign."""
    first = groups.argmin(-1)[:, None]
    return np.maximum(span, _SMALLEST_SCALE), np.take_along_axis(groups, first, -1)[:, 0]


def _anchored(low: np.ndarray, high: np.ndarray, span: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and biases that make the larger end exact: it is code 0, and the scale divides it a whole number of
    times.
    """
    low_is_larger = np.abs(low) > np.abs(high)
    scales = np.maximum(span / np.float32((1 << bits) - 1), _SMALLEST_SCALE)
    scales = np.where(low_is_larger, scales, -scales)
    edge = np.where(low_is_larger, low, high)
    steps = np.rint(edge / scales)
    anchored = steps != 0
    scales = np.where(anchored, edge / np.where(anchored, steps, np.float32(1)), scales)
    return scales, np.where(anchored, edge, np.float32(0))


def dequantize_groups(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Codes [..., G, group_size] with scales and biases [..., G] to values in the scales' dtype.

    The product is rounded to that dtype before the bias is added, and the sum again: two roundings, as in MLX. A
    product beyond float16 is infinite, as there.
    """
    dtype = scales.dtype
    values = codes.astype(np.float32)
    values *= scales.astype(np.float32)[..., None]
    if dtype == np.float32:
        values += biases[..., None]
        return values
    with np.errstate(over="ignore"):
        values = values.astype(dtype).astype(np.float32)
        values += biases.astype(np.float32)[..., None]
        return values.astype(dtype)
