"""What float16 products need beforehand: activations in float16, and bounds for what gate and up can make of them.

float16 has few exponents, so each row is multiplied by the power of two that brings its largest activation near
float16's largest number. Nothing overflows then, and what loses bits is less than 2^-29 of that activation.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.codes import scale_of
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def _power(stored_exponent):
    """The power of two, f32, that has an exponent as float32 stores it."""
    return (stored_exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def _keep_sizes(sizes, row, largest, total):
    """sizes [n, 2] of a row as `rows.Halves` has them; what its activations are multiplied by."""
    exponent = tl.minimum(tl.maximum(268 - (largest.to(tl.int32, bitcast=True) >> 23), 1), 253)
    tl.store(sizes + row * 2, _power(254 - exponent))
    tl.store(sizes + row * 2 + 1, total)
    return _power(exponent)


@triton.jit
def _store_ordered(
    x, factor, out, row, first, K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, LIFTED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """x [BLOCK] times the factor, the row's activations from `first` on; LIFTED: of every second one a sixteenth."""
    if LIFTED:
        factor = tl.where(tl.arange(0, BLOCK) % 2 == 1, 0.0625, 1.0) * factor
    number = (x * factor).to(tl.float16)
    ordered = tl.reshape(tl.permute(tl.reshape(number, (BLOCK // G, G // C, C)), (0, 2, 1)), (BLOCK,))
    k = first + tl.arange(0, BLOCK)
    tl.store(out + row * K + k, ordered, mask=k < K)


@triton.jit
def halve_row(
    x, out, sizes, row, K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, LIFTED: tl.constexpr, BLOCK: tl.constexpr
):
    """A row x f32 [BLOCK], zeros behind its K activations, in the order of codes as float16, and its sizes."""
    size = tl.abs(x)
    factor = _keep_sizes(sizes, row, tl.max(size, 0), tl.sum(size, 0))
    _store_ordered(x, factor, out, row, 0, K, G, C, LIFTED, BLOCK)


@triton.jit
def halve_kernel(
    x, out, sizes, K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, LIFTED: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A row of x [n, K] in the order of codes, as float16; sizes [n, 2] as `rows.Halves` has them. For rows that no
    program has in its registers: they are read twice.
    """
    row = tl.program_id(0).to(tl.int64)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    largest, total = tl.full((), 0.0, tl.float32), tl.full((), 0.0, tl.float32)
    for first in tl.range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)
        size = tl.abs(tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32))
        largest = tl.maximum(largest, tl.max(size, 0))
        total += tl.sum(size, 0)
    factor = _keep_sizes(sizes, row, largest, total)
    for first in tl.range(0, K, BLOCK):
        k = first + tl.arange(0, BLOCK)
        part = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
        _store_ordered(part, factor, out, row, first, K, G, C, LIFTED, BLOCK)


@triton.jit
def largest_kernel(
    scales, biases, largest, n,
    MODE: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """largest [E]: no weight of a matrix, of which n groups are stored, has a larger magnitude."""
    expert = tl.program_id(0)
    start = expert.to(tl.int64) * n
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    most = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, n, BLOCK):
        place = first + tl.arange(0, BLOCK)
        scale = scale_of(tl.load(scales + start + place, mask=place < n, other=0), MODE)
        if MODE == "affine":
            bias = tl.load(biases + start + place, mask=place < n, other=0.0).to(tl.float32)
            size = tl.maximum(tl.abs(bias), tl.abs(((1 << BITS) - 1) * scale + bias))
        else:
            size = 6.0 * scale
        most = tl.maximum(most, tl.where(place < n, size, 0.0))
    tl.store(largest + expert, tl.max(most, 0))
