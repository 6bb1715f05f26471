"""Quantise and dequantise, byte for byte as `coterie.formats.codec` does.

Quantising is done with PyTorch's operations, whose f32 arithmetic rounds as NumPy's does as long as one divides by
tensors: a division by a Python number becomes a product. It waits for the device, to refuse what cannot be quantised.
"""

import torch

from coterie.arrays import as_numpy
from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.kernels.dequantize import dequantize_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv
from coterie.backends.cuda.tensors import is_capturing
from coterie.errors import NumericError, UnsupportedError
from coterie.formats import Format, Packed, codec
from coterie.formats.microscaling import code_values

_BLOCK = 1024
_WEIGHTS_AT_ONCE = 1 << 24
_SMALLEST_SCALE = 1e-7
_E2M1_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_E8M0_BIAS = 127


@within_memory
def dequantize(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    """The values [..., N, K] in `dtype`."""
    fmt = packed.format
    out = torch.empty(packed.shape, dtype=dtype, device=packed.codes.device)
    with on_device_of(out):
        launch(
            dequantize_kernel, (cdiv(out.numel(), _BLOCK),),
            packed.codes.view(torch.int32), packed.scales, packed.biases, out, out.numel(),
            MODE=fmt.mode, BITS=fmt.bits, GROUP=fmt.group_size, BLOCK=_BLOCK, **early(out, fused=False),
        )  # fmt: skip
    return out


@within_memory
def quantize(w: torch.Tensor, fmt: Format) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(codes, scales, biases or None) of w [..., N, K]."""
    if is_capturing(w):
        raise UnsupportedError("quantize waits for the device; call it before a CUDA graph is captured", code="capture")
    rows = w.reshape(-1, w.shape[-1])
    step = max(1, _WEIGHTS_AT_ONCE // rows.shape[1])
    parts = [_rows(rows[first : first + step], fmt) for first in range(0, len(rows), step)]
    leading = w.shape[:-1]
    codes, scales = (torch.cat([part[place] for part in parts]).reshape(*leading, -1) for place in (0, 1))
    biases = None if parts[0][2] is None else torch.cat([part[2] for part in parts]).reshape(*leading, -1)
    return codes.view(torch.uint32), scales, biases


def _rows(rows: torch.Tensor, fmt: Format) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    groups = rows.reshape(-1, fmt.group_size)
    affine = fmt.mode == "affine"
    quantized, scales, biases = _affine(groups, fmt.bits) if affine else _microscaled(groups, fmt)
    numbers = (groups, scales, biases) if biases is not None else (groups,)
    if not torch.stack([part.isfinite().all() for part in numbers]).all():
        codec.quantize(as_numpy(rows), fmt)
        raise NumericError("the matrix has NaN, infinity or a group whose range overflows; expected finite weights")
    n_rows = len(rows)
    codes = _pack(quantized.reshape(n_rows, -1), fmt.bits)
    return codes, scales.reshape(n_rows, -1), None if biases is None else biases.reshape(n_rows, -1)


def _affine(groups: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype, groups = groups.dtype, groups.float()
    low, high = torch.aminmax(groups, dim=-1)
    if bits == 1:
        scales = (high - low).clamp(min=_SMALLEST_SCALE)
        biases = groups.gather(-1, groups.argmin(-1, keepdim=True))[:, 0]
    else:
        scales, biases = _anchored(low, high, (1 << bits) - 1)
    codes = torch.round((groups - biases[:, None]) / scales[:, None]).clamp(0, (1 << bits) - 1)
    return codes.to(torch.uint8), scales.to(dtype), biases.to(dtype)


def _anchored(low: torch.Tensor, high: torch.Tensor, n_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and biases that make the larger end exact, as `formats.affine` explains."""
    low_is_larger = low.abs() > high.abs()
    scales = ((high - low) / torch.full_like(low, n_steps)).clamp(min=_SMALLEST_SCALE)
    scales = torch.where(low_is_larger, scales, -scales)
    edge = torch.where(low_is_larger, low, high)
    steps = torch.round(edge / scales)
    anchored = steps != 0
    scales = torch.where(anchored, edge / torch.where(anchored, steps, 1.0), scales)
    return scales, torch.where(anchored, edge, 0.0)


def _microscaled(groups: torch.Tensor, fmt: Format) -> tuple[torch.Tensor, torch.Tensor, None]:
    dtype, wide = groups.dtype, groups.float()
    largest = wide.abs().amax(-1)
    limit = float(code_values(fmt)[7 if fmt.bits == 4 else 126])
    ideal = (largest / torch.full_like(largest, limit)).to(dtype).float()
    if fmt.mode == "nvfp4":
        scales = _to_e4m3(ideal)
        steps = scales.view(torch.float8_e4m3fn).float()[:, None]
    else:
        scales = _to_e8m0(ideal)
        bits = scales.to(torch.int32)
        steps = torch.where(bits == 0, 1 << 22, bits << 23).view(torch.float32)[:, None]
    ratios = (wide / steps).to(dtype).float()
    if fmt.mode == "nvfp4":
        ratios = torch.where(scales[:, None] == 0, 0.0, ratios)
    return _to_e2m1(ratios) if fmt.bits == 4 else _to_e4m3(ratios), scales, None


def _to_e8m0(ideal: torch.Tensor) -> torch.Tensor:
    """The power of two at or above each ideal scale, 1 for zero; never below the smallest that E8M0 has."""
    fraction, exponents = torch.frexp(ideal)
    exponents = torch.where(fraction == 0.5, exponents - 1, exponents).clamp(min=-_E8M0_BIAS)
    return (torch.where(fraction == 0, 0, exponents) + _E8M0_BIAS).to(torch.uint8)


def _to_e2m1(x: torch.Tensor) -> torch.Tensor:
    """Nearest of the 16 values; a tie goes to the smaller magnitude."""
    middles = torch.tensor(_E2M1_MIDDLES, dtype=torch.float32, device=x.device)
    codes = torch.bucketize(x.abs(), middles, out_int32=True)
    return (codes | torch.where((x < 0) & (codes != 0), 8, 0)).to(torch.uint8)


def _to_e4m3(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes uint8 [rows, K] as words int32: eight of them meet in a 64-bit integer, whose low bytes are the stream."""
    units = codes.reshape(len(codes), -1, 8).to(torch.int64)
    stream = torch.zeros_like(units[..., 0])
    for place in range(8):
        stream |= units[..., place] << (place * bits)
    octets = stream.contiguous().view(torch.uint8).reshape(*stream.shape, 8)[..., :bits]
    return octets.reshape(len(codes), -1).contiguous().view(torch.int32)
