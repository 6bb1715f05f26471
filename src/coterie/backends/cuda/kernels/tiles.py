"""Products of tiles that mean the same where kernels are compiled and where they are interpreted."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import INTERPRETED


@triton.jit
def product(a, b):
    """a [M, K] times b [K, N] in f32, operands of one dtype; f32 operands are multiplied as f32, never as TF32.

    Triton's interpreter would multiply the bits of bf16 operands as integers.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")
