"""Weights on their way before a kernel may begin, into the second-level cache, while earlier kernels still run."""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.columns import row_width
from coterie.backends.cuda.launch import SPEAKS_PTX

_LINE = tl.constexpr(128)
"""Bytes of a line of the cache."""


@triton.constexpr_function
def _lines(n_elements, bits):
    """A power of two of lines that hold so many elements."""
    return triton.next_power_of_2(triton.cdiv(n_elements * bits, 8 * _LINE.value))


@triton.jit
def _fetch(pointer, end, N: tl.constexpr):
    """Elements [0, N) of an array of `end` elements, as far as it has them."""
    BITS: tl.constexpr = pointer.dtype.element_ty.primitive_bitwidth
    first = tl.arange(0, _lines(N, BITS)) * (_LINE * 8 // BITS)
    address = pointer + tl.minimum(first, tl.minimum(end, N) - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def fetch_rows(
    codes, scales, biases, first_row, n_rows,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """BN rows from `first_row` on of a matrix of n_rows, their scales and biases."""
    if SPEAKS_PTX:
        W: tl.constexpr = row_width(K, MODE, BITS, C)
        left = n_rows - first_row
        _fetch(codes + first_row * W, left * W, BN * W)
        if MODE != "plain":
            _fetch(scales + first_row * (K // G), left * (K // G), BN * (K // G))
        if MODE == "affine":
            _fetch(biases + first_row * (K // G), left * (K // G), BN * (K // G))
