"""Block floating point as MLX does it: mxfp4, mxfp8 (OCP Microscaling Formats v1.0) and nvfp4, bit for bit.

A code is a small float (E2M1 or E4M3), a scale one byte a group: E8M0, a power of two, for the mx formats and E4M3 for
nvfp4. MLX quantises in the dtype of w, so f32 and bf16 input give other bytes at the rounding borders; that is kept
here. Magnitudes that a format cannot reach saturate at its largest one.
"""

import ml_dtypes
import numpy as np

from coterie.errors import NumericError
from coterie.formats.spec import Format

_E2M1_MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
_E8M0_BIAS = 127


def _e4m3_table() -> np.ndarray:
    octets = np.arange(256)
    exponent, mantissa = (octets >> 3) & 15, octets & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[octets & 127 == 127] = np.nan
    return np.where(octets & 128, -magnitude, magnitude).astype(np.float32)


E2M1 = np.concatenate([_E2M1_MAGNITUDES, -_E2M1_MAGNITUDES])
"""The value of each 4-bit code, f32 [16]; bit 3 is the sign."""

E4M3 = _e4m3_table()
"""The value of each byte, f32 [256]; 0x7f and 0xff are NaN, there is no infinity, the largest is 448."""


def code_values(fmt: Format) -> np.ndarray:
    """The table of values of the codes of `fmt`."""
    return E2M1 if fmt.bits == 4 else E4M3


def scale_values(scales: np.ndarray, fmt: Format) -> np.ndarray:
    """uint8 scales to f32. E8M0 runs from 2**-127 (0) to 2**127 (254); 255 is infinity, as MLX decodes it."""
    if fmt.mode == "nvfp4":
        return np.take(E4M3, scales)
    with np.errstate(over="ignore"):
        steps: np.ndarray = np.ldexp(np.float32(1), scales.astype(np.int32) - _E8M0_BIAS)
    return steps


def quantize_groups(groups: np.ndarray, fmt: Format) -> tuple[np.ndarray, np.ndarray]:
    """Groups [G, group_size] in f32, f16 or bf16 to codes uint8 of the same shape and scales uint8 [G]."""
    dtype = groups.dtype
    largest = np.abs(groups.astype(np.float32)).max(-1)
    if not np.isfinite(largest).all():
        raise NumericError("the matrix has NaN or infinity; expected finite weights, nothing was quantised")
    ideal = (largest / np.nanmax(code_values(fmt))).astype(dtype)
    scales = encode_e4m3(ideal.astype(np.float32)) if fmt.mode == "nvfp4" else _encode_e8m0(ideal)
    steps = scale_values(scales, fmt)[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = (groups.astype(np.float32) / steps).astype(dtype).astype(np.float32)
    if fmt.mode == "nvfp4":
        ratios[scales == 0] = 0
    codes = _encode_e2m1(ratios) if fmt.bits == 4 else encode_e4m3(ratios)
    return codes, scales


def _encode_e8m0(ideal: np.ndarray) -> np.ndarray:
    """The power of two at or above each ideal scale (1 for an ideal scale of zero), as E8M0 bytes.

    Below 2**-127, the smallest scale that E8M0 has, the exponent stays there; MLX's byte wraps around to a huge scale.
    """
    fraction, exponents = np.frexp(ideal.astype(np.float32))
    exponents = np.where(fraction == 0.5, exponents - 1, exponents)
    exponents = np.where(fraction == 0, 0, np.maximum(exponents, -_E8M0_BIAS))
    return (exponents + _E8M0_BIAS).astype(np.uint8)


def _encode_e2m1(x: np.ndarray) -> np.ndarray:
    """Nearest of the 16 values; a tie goes to the smaller magnitude, as in MLX."""
    middles = (_E2M1_MAGNITUDES[1:] + _E2M1_MAGNITUDES[:-1]) / 2
    codes: np.ndarray = np.searchsorted(middles, np.abs(x), side="left").astype(np.uint8)
    codes |= ((x < 0) & (codes != 0)).astype(np.uint8) << np.uint8(3)
    return codes


def encode_e4m3(x: np.ndarray) -> np.ndarray:
    """f32 to E4M3 bytes: nearest, ties to even, magnitudes above 448 saturate."""
    octets: np.ndarray = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return octets


def dequantize_groups(codes: np.ndarray, scales: np.ndarray, fmt: Format, dtype: np.dtype) -> np.ndarray:
    """Codes [..., G, group_size] and scales [..., G] to values of `dtype`; values and scales are rounded to it
    first.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        table = code_values(fmt).astype(dtype).astype(np.float32)
        steps = scale_values(scales, fmt).astype(dtype).astype(np.float32)
        values: np.ndarray = (table[codes] * steps[..., None]).astype(dtype)
    return values
