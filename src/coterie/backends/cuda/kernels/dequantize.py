"""From codes to numbers with the rounding of `coterie.formats`, bit for bit.

Rows of codes fill whole words, so a matrix, or a stack of them, is one stream of bits and its groups follow each other
without regard to rows.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def code_at(words, place, inside, BITS: tl.constexpr):
    """The codes, as uint32, at small places of a stream of int32 words; those of 3, 5 and 6 bits may straddle two."""
    bit = place * BITS
    shift = (bit % 32).to(tl.uint32)
    code = tl.load(words + bit // 32, mask=inside, other=0).to(tl.uint32, bitcast=True) >> shift
    if 32 % BITS != 0:
        straddles = shift + BITS > 32
        rest = tl.load(words + bit // 32 + 1, mask=inside & straddles, other=0).to(tl.uint32, bitcast=True)
        code = tl.where(straddles, code | (rest << ((32 - shift) & 31)), code)
    return code & ((1 << BITS) - 1)


@triton.jit
def _signed(magnitude, sign):
    """A magnitude with a sign, 0 or 1; a minus would make 0 of -0."""
    return (magnitude.to(tl.uint32, bitcast=True) | (sign << 31)).to(tl.float32, bitcast=True)


@triton.jit
def e2m1(code):
    """The values of 4-bit floats as uint32, f32."""
    low = code & 7
    octave = ((low << 22) + (126 << 23)).to(tl.float32, bitcast=True)
    return _signed(tl.where(low < 2, low.to(tl.float32) * 0.5, octave), code >> 3)


@triton.jit
def e4m3(code):
    """The values of 8-bit floats as uint32, f32; 0x7f and 0xff are NaN."""
    low = code & 127
    magnitude = ((low << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    magnitude = tl.where(low < 8, low.to(tl.float32) * 0.001953125, magnitude)
    return _signed(tl.where(low == 127, float("nan"), magnitude), code >> 7)


@triton.jit
def e8m0(scale):
    """Powers of two from 2**-127 (0) to 2**127, and infinity (255), f32; of scales as uint32."""
    return tl.where(scale == 0, 0x00400000, scale << 23).to(tl.float32, bitcast=True)


@triton.jit
def dequantize_kernel(
    codes, scales, biases, out, n_values,
    MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK values of `out`; BLOCK is a multiple of every group."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    place = tl.arange(0, BLOCK)
    inside = place < n_values - first
    groups = first // GROUP + place // GROUP
    target = out.dtype.element_ty
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    code = code_at(codes + first // 32 * BITS, place, inside, BITS)
    scale = tl.load(scales + groups, mask=inside, other=0)
    if MODE == "affine":
        # The product is rounded before the bias is added: the kernel is compiled without fused additions.
        product = (code.to(tl.float32) * scale.to(tl.float32)).to(scales.dtype.element_ty).to(tl.float32)
        bias = tl.load(biases + groups, mask=inside, other=0).to(tl.float32)
        value = (product + bias).to(scales.dtype.element_ty).to(target)
    else:
        number = e2m1(code) if BITS == 4 else e4m3(code)
        step = e4m3(scale.to(tl.uint32)) if MODE == "nvfp4" else e8m0(scale.to(tl.uint32))
        value = (number * step.to(target).to(tl.float32)).to(target)
    tl.store(out + first + place, value, mask=inside)
