"""`product`: a few weight rows times the activations of some tokens, compiled once for each layout.

Callers pass one block of int64 words (the places below) in their thread's scratch memory. Few tokens are multiplied
straight from the packed bytes; more are worth unpacking a panel of weights for. The switch was measured
(docs/performance.md).
"""

import functools
from typing import Any

import numba
from numba import types

from coterie.backends.cpu.jit import compile_callback
from coterie.backends.cpu.kernels.dot import dot_row
from coterie.backends.cpu.kernels.gemm import multiply_tile, reduce_tile, unpack_blocks
from coterie.backends.cpu.layout import Layout, from_key

CODES, CODES_STRIDE, SCALES, SCALES_STRIDE, BIASES, N_INPUTS = 0, 1, 2, 3, 4, 5
N_ROWS, INPUTS, N_TOKENS, OUT, OUT_STRIDE, PANEL, SUMS = 6, 7, 8, 9, 10, 11, 12
NEXT_CODES, NEXT_SCALES, NEXT_BIASES = 13, 14, 15  # rows to bring near for the product after this one; see `expect`
CALL_WORDS = 16

MAX_TOKENS = 96
"""Tokens of one call; the accumulators of a panel's rows for so many fit in the second-level cache."""
MAX_ROWS = 128
"""Weight rows of one call."""
DOT_TOKENS = 4
"""Up to so many tokens are multiplied straight from the packed bytes."""
MOST_DOT_TOKENS = 4
"""Tokens whose activations meet a block of codes in registers."""
PANEL_WEIGHTS = 512
"""Weights of each row in a panel: with eight rows, 16 KiB."""

SIGNATURE = types.void(types.CPointer(types.int64))


def panel_blocks(layout: Layout) -> int:
    """Blocks of a row that one panel holds."""
    return max(1, PANEL_WEIGHTS // layout.block)


def scratch_bytes(layout_isa: Any) -> tuple[int, int]:
    """Bytes that a thread needs for the panel and for the sums."""
    widest_block = 32 * layout_isa.lanes
    panel = 4 * layout_isa.tile_rows * max(PANEL_WEIGHTS, widest_block)
    return panel, 4 * layout_isa.lanes * layout_isa.tile_rows * (MAX_TOKENS + layout_isa.tile_tokens)


@functools.cache
def product(key: int) -> Any:
    """The compiled callback for the layout with this key; `.address` is what jobs call."""
    return compile_callback(SIGNATURE, make_product(key, from_key(key)))


@numba.njit(inline="always")
def _row(a: Any, row: int) -> tuple[int, int, int]:
    scale_offset = row * a[SCALES_STRIDE]
    return a[CODES] + row * a[CODES_STRIDE], a[SCALES] + scale_offset, a[BIASES] + scale_offset


def make_product(key: int, layout: Layout) -> Any:
    """The function to compile."""
    tile_rows, tile_tokens = layout.isa.tile_rows, layout.isa.tile_tokens
    block, blocks_a_panel, vectors_a_block = layout.block, panel_blocks(layout), layout.fields
    panel_stride = 4 * block * blocks_a_panel
    token_bytes = 4 * layout.lanes * tile_rows

    def multiply(a: Any) -> None:
        n_rows, n_tokens = a[N_ROWS], a[N_TOKENS]
        row = 0
        while n_tokens > DOT_TOKENS and row + tile_rows <= n_rows:
            n_blocks = (a[N_INPUTS] + block - 1) // block
            begin = 0
            while begin < n_blocks:
                count = min(blocks_a_panel, n_blocks - begin)
                for tile_row in range(tile_rows):
                    codes, scales, biases = _row(a, row + tile_row)
                    unpack_blocks(
                        key, codes, scales, biases, a[N_INPUTS], begin, count, a[PANEL] + tile_row * panel_stride,
                        tile_rows * a[CODES_STRIDE], tile_rows * a[SCALES_STRIDE],
                    )  # fmt: skip
                for token in range(0, n_tokens, tile_tokens):
                    multiply_tile(
                        key, min(tile_tokens, n_tokens - token), count * vectors_a_block, a[PANEL], panel_stride,
                        a[INPUTS] + 8 * token, 4 * block * begin, a[SUMS] + token * token_bytes, 1 if begin == 0 else 0,
                    )  # fmt: skip
                begin += count
            for token in range(0, n_tokens, tile_tokens):
                out = a[OUT] + 4 * (token * a[OUT_STRIDE] + row)
                reduce_tile(key, min(tile_tokens, n_tokens - token), a[SUMS] + token * token_bytes, out, a[OUT_STRIDE])
            row += tile_rows
        while row < n_rows:
            codes, scales, biases = _row(a, row)
            for token in range(0, n_tokens, MOST_DOT_TOKENS):
                out = a[OUT] + 4 * (token * a[OUT_STRIDE] + row)
                dot_row(
                    key, MOST_DOT_TOKENS, min(MOST_DOT_TOKENS, n_tokens - token), codes, scales, biases, a[N_INPUTS],
                    a[INPUTS] + 8 * token, out, a[OUT_STRIDE],
                )  # fmt: skip
            row += 1

    return multiply
