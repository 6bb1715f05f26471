"""`mx.quantize` and `mx.dequantize`; where MLX's own result would be wrong, the NumPy codec's instead."""

import mlx.core as mx

from coterie.arrays import as_numpy, from_numpy
from coterie.formats import Format, Packed, codec
from coterie.ops import dispatch

_SMALLEST_E8M0 = 2.0**-126
_NVFP4_SAFE = 2688.0 * 64
_CODE_LIMIT = {"mxfp4": 6.0, "mxfp8": 448.0, "nvfp4": 6.0}


def quantize(w: mx.array, fmt: Format) -> tuple[mx.array, ...]:
    if not _mlx_is_right(w, fmt):
        return tuple(from_numpy(part, "mlx") for part in codec.quantize(as_numpy(w), fmt) if part is not None)
    return tuple(mx.quantize(w, group_size=fmt.group_size, bits=fmt.bits, mode=fmt.mode))


def dequantize(packed: Packed, dtype: str) -> mx.array:
    fmt = packed.format
    if fmt.mode != "affine" and packed.codes.size % 4:
        # MLX's CPU takes these codes four words at a time and refuses a rest.
        target = dispatch.numpy_dtype(dtype)
        values = codec.dequantize(as_numpy(packed.codes), as_numpy(packed.scales), None, fmt, target)
        converted: mx.array = from_numpy(values, "mlx")
        return converted
    return mx.dequantize(
        packed.codes,
        packed.scales,
        packed.biases,
        group_size=fmt.group_size,
        bits=fmt.bits,
        mode=fmt.mode,
        dtype=getattr(mx, dtype),
    )


def _mlx_is_right(w: mx.array, fmt: Format) -> bool:
    """False for what MLX quantises to nonsense in silence, or cannot: the codec refuses it, or does it right.

    That is NaN and infinity, ranges that overflow, scales below those of E8M0 (MLX's byte wraps around), magnitudes far
    beyond nvfp4 (MLX's nearest code of infinity is zero), and groups that do not fill MLX's unit of 32 codes.
    """
    if fmt.mode != "affine" and w.size % 32:
        return False
    groups = w.reshape(-1, fmt.group_size).astype(mx.float32)
    if fmt.mode == "affine":
        span = groups.max(-1) - groups.min(-1)
        return bool(mx.isfinite((span if fmt.bits == 1 else span / 2).astype(w.dtype)).all().item())
    largest = mx.abs(groups).max(-1)
    good = mx.isfinite(largest)
    if fmt.mode == "nvfp4":
        good = good & (largest < _NVFP4_SAFE)
    else:
        good = good & ((largest == 0) | (largest > _CODE_LIMIT[fmt.mode] * _SMALLEST_E8M0))
    return bool(good.all().item())
