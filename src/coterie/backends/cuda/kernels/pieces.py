"""What pieces of long rows give, summed."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def add_pieces_kernel(values, out, n, n_columns, PIECES: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """BLOCK columns of a row of out [n, n_columns]: the sums of values f32 [PIECES, n, n_columns]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    total = tl.zeros((BLOCK,), tl.float32)
    for piece in tl.static_range(PIECES):
        total += tl.load(values + (piece * n + row) * n_columns + column, mask=column < n_columns, other=0.0)
    tl.store(out + row * n_columns + column, total.to(out.dtype.element_ty), mask=column < n_columns)
