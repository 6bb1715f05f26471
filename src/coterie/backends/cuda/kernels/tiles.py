"""Products of tiles and rounding that mean the same where kernels are compiled and where they are interpreted.

Triton's interpreter multiplies the bits of bf16 operands as integers, and cuts numbers off where the GPU rounds them to
the nearest bf16; kernels that come here instead are tested with the arithmetic that they have on a GPU.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import INTERPRETED


@triton.jit
def product(a, b):
    """a [M, K] times b [K, N] in f32, operands of one dtype; f32 operands are multiplied as f32, never as TF32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """f32 x as f32, f16 or bf16: the nearest number, of two the even one."""
    if INTERPRETED and tl.bfloat16 == DTYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(DTYPE)
