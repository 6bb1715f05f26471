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


@triton.jit
def plain_dot(weights, x, acc):
    """acc + weights @ x for weights of any float dtype, which are exact: f16 as two bfloat16 numbers, f32 as three."""
    if weights.dtype == tl.bfloat16:
        acc = dot(weights, x, acc)
    else:
        high = weights.to(tl.bfloat16)
        rest = weights.to(tl.float32) - high.to(tl.float32)
        low = rest.to(tl.bfloat16)
        acc = dot(low, x, dot(high, x, acc))
        if weights.dtype == tl.float32:
            acc = dot((rest - low.to(tl.float32)).to(tl.bfloat16), x, acc)
    return acc
