"""Rows of an embedding, dequantised where they are gathered."""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.dequantize import code_at, e2m1, e4m3, e8m0
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def embed_kernel(
    codes, scales, biases, ids, out, size, factor,
    MODE: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: BLOCK numbers of a row, times factor. A MODE of "plain" is a matrix of floats in place of codes."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    source = tl.load(ids + row)
    if MODE == "plain":
        values = tl.load(codes + source * size + columns, mask=inside, other=0.0).to(tl.float32)
    else:
        code = code_at(codes + source * (size * BITS // 32), columns, inside, BITS)
        groups = source * (size // GROUP) + columns // GROUP
        scale = tl.load(scales + groups, mask=inside, other=0)
        if MODE == "affine":
            bias = tl.load(biases + groups, mask=inside, other=0).to(tl.float32)
            # In f32 the stored numbers meet as they are: the kernel is compiled without fused additions.
            values = code.to(tl.float32) * scale.to(tl.float32) + bias
        else:
            number = e2m1(code) if BITS == 4 else e4m3(code)
            values = number * (e4m3(scale.to(tl.uint32)) if MODE == "nvfp4" else e8m0(scale.to(tl.uint32)))
    tl.store(out + row * size + columns, values * factor, mask=inside)
