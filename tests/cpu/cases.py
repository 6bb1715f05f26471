"""Formats, instruction sets and packed matrices for the tests of the CPU back end."""

import numpy as np

from coterie.backends.cpu import isa
from coterie.formats import AFFINE_BITS, Format, Packed, codec

FORMATS = [Format.resolve("affine", bits, group) for bits in AFFINE_BITS for group in (32, 64, 128)]
FORMATS += [Format.resolve(mode) for mode in ("mxfp4", "mxfp8", "nvfp4")]
SETS = [instructions.name for instructions in isa.ISAS if isa.runs_here(instructions)]


def packed_of(
    rng: np.random.Generator, shape: tuple[int, ...], fmt: Format, dtype: np.dtype | type = np.float32
) -> Packed:
    """Normal numbers over the square root of the row's length, quantised."""
    values = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(dtype)
    codes, scales, biases = codec.quantize(values, fmt)
    return Packed(codes, scales, biases, fmt.bits, fmt.group_size, fmt.mode)


def exact(packed: Packed) -> np.ndarray:
    """What the packed matrix stands for, in float64."""
    return codec.dequantize_f64(packed.codes, packed.scales, packed.biases, packed.format)
