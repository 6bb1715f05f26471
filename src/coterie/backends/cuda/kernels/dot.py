"""Matrix products of bfloat16 tiles."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import INTERPRETED


@triton.jit
def dot(a, b, acc):
    """acc + a @ b in f32. Triton's interpreter would multiply the bits of bfloat16 numbers, so it gets f32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc)
