"""`int16_product`: weight rows times activations of 16 bits, with the calling convention of `product`."""

import functools
from typing import Any

from coterie.backends.cpu import product as p
from coterie.backends.cpu.int8_product import panel_groups, rows_ahead
from coterie.backends.cpu.jit import compile_callback
from coterie.backends.cpu.kernels.int8_panel import fill_panel, record_bytes
from coterie.backends.cpu.kernels.int8_tile import ROW_VECTORS
from coterie.backends.cpu.kernels.int16_dot import dot_rows_int16
from coterie.backends.cpu.kernels.int16_round import prepared_bytes
from coterie.backends.cpu.kernels.int16_tile import multiply_int16_tile
from coterie.backends.cpu.layout import Layout, from_key
from coterie.backends.cpu.prepare import Preparation, prepare_rounded

AHEAD = 6144
"""How many bytes ahead of the codes in hand the next ones are asked for."""
SCALES_AHEAD = 8192
"""The same for scales, in the bytes of the codes that go with them."""
DOT_TOKENS = 4
"""Up to so many tokens are multiplied straight from the packed bytes; more are worth a panel of codes."""
MOST_DOT_TOKENS = 4
"""Tokens whose activations meet a block of codes in registers."""


def has_int16(layout: Layout) -> bool:
    """Whether there is a kernel for this layout: its codes must be integers of at most eight bits, whole in a word."""
    if not layout.isa.multiplies_integers:
        return False
    return layout.kind == "e2m1" or (layout.kind == "affine" and not layout.straddles)


def prepare_int16(layout: Layout, n_inputs: int) -> Preparation:
    """Activations as integers of 16 bits, a scale for each group."""
    return prepare_rounded(16, layout, n_inputs, prepared_bytes(layout, n_inputs))


@functools.cache
def int16_product(key: int) -> Any:
    """The compiled callback for the layout with this key."""
    return compile_callback(p.SIGNATURE, make_product(key, from_key(key)))


def make_product(key: int, layout: Layout) -> Any:
    """The function to compile."""
    lanes, group, block = layout.lanes, layout.group, layout.block
    groups_a_panel, tile_rows, tile_tokens = panel_groups(layout), ROW_VECTORS * lanes, layout.isa.integer_tokens
    panel_stride = groups_a_panel * record_bytes(layout)

    def multiply(a: Any) -> None:
        n_rows, n_tokens, n_groups = a[p.N_ROWS], a[p.N_TOKENS], a[p.N_INPUTS] // group
        row = 0
        if n_tokens > DOT_TOKENS:
            steps = (a[p.N_INPUTS] + block - 1) // block * (2 * block)
            while row < n_rows:
                ahead = rows_ahead(a, row, n_rows, tile_rows)
                for begin in range(0, n_groups, groups_a_panel):
                    count = min(groups_a_panel, n_groups - begin)
                    for part in range(ROW_VECTORS):
                        first = min(row + part * lanes, n_rows - 1)
                        fill_panel(
                            key, a[p.CODES] + first * a[p.CODES_STRIDE], a[p.CODES_STRIDE],
                            a[p.SCALES] + first * a[p.SCALES_STRIDE], a[p.SCALES_STRIDE],
                            a[p.BIASES] + first * a[p.SCALES_STRIDE], n_rows - first, ahead[0], ahead[1], ahead[2],
                            begin, count, a[p.PANEL] + part * panel_stride,
                        )  # fmt: skip
                    for token in range(0, n_tokens, tile_tokens):
                        multiply_int16_tile(
                            key, min(tile_tokens, n_tokens - token), begin, count, a[p.PANEL], panel_stride,
                            a[p.INPUTS] + 8 * token, steps, steps + 4 * n_groups,
                            a[p.OUT] + 4 * (token * a[p.OUT_STRIDE] + row), a[p.OUT_STRIDE],
                        )  # fmt: skip
                row += tile_rows
            return
        codes, codes_stride, scales, scales_stride = a[p.CODES], a[p.CODES_STRIDE], a[p.SCALES], a[p.SCALES_STRIDE]
        biases, n_inputs, inputs, out, out_stride = a[p.BIASES], a[p.N_INPUTS], a[p.INPUTS], a[p.OUT], a[p.OUT_STRIDE]
        scales_ahead = (SCALES_AHEAD // codes_stride + 1) * scales_stride
        # From here on what is wanted next are the rows of another call.
        border = n_rows - AHEAD // codes_stride
        jump = AHEAD + a[p.NEXT_CODES] - codes - n_rows * codes_stride
        while row < n_rows:
            ahead = AHEAD if row < border else jump
            if n_tokens > 2 and row + 2 <= n_rows:
                for token in range(0, n_tokens, MOST_DOT_TOKENS):
                    dot_rows_int16(
                        key, 2, MOST_DOT_TOKENS, min(MOST_DOT_TOKENS, n_tokens - token), codes, codes_stride, scales,
                        scales_stride, biases, n_inputs, ahead, scales_ahead, inputs + 8 * token,
                        out + 4 * token * out_stride, out_stride,
                    )  # fmt: skip
                n_done = 2
            else:
                for token in range(n_tokens):
                    dot_rows_int16(
                        key, 1, 1, 1, codes, codes_stride, scales, scales_stride, biases, n_inputs, ahead, scales_ahead,
                        inputs + 8 * token, out + 4 * token * out_stride, out_stride,
                    )  # fmt: skip
                n_done = 1
            row += n_done
            codes += n_done * codes_stride
            scales += n_done * scales_stride
            biases += n_done * scales_stride
            out += 4 * n_done

    return multiply
