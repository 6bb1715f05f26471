"""`int8_product`: weight rows times activations of 8 bits, with the calling convention of `product`."""

import functools
from typing import Any

import numba

from coterie.backends.cpu import product as p
from coterie.backends.cpu.isa import Isa
from coterie.backends.cpu.jit import compile_callback
from coterie.backends.cpu.kernels.int8_few import FEW_TOKENS, multiply_int8_few
from coterie.backends.cpu.kernels.int8_panel import fill_panel, record_bytes
from coterie.backends.cpu.kernels.int8_round import FACTOR_BYTES, prepared_bytes
from coterie.backends.cpu.kernels.int8_tile import ROW_VECTORS, multiply_int8_tile
from coterie.backends.cpu.layout import Layout, from_key
from coterie.backends.cpu.prepare import Preparation, prepare_rounded

PANEL_INPUTS = 1024
"""Least weights of each row in a panel, where the row has so many: with 32 rows, most of the first-level cache."""
_GROUPS = (16, 32, 64, 128)


def panel_groups(layout: Layout) -> int:
    """Groups of a panel: whole vectors of scales."""
    return max(layout.lanes, PANEL_INPUTS // layout.group)


def why_not(layout: Layout) -> str:
    """Why there is no kernel for this layout on this machine; "" if there is one."""
    if layout.kind not in ("affine", "e2m1") or layout.bits not in (4, 8):
        return "which has none (affine with 4 or 8 bits, mxfp4 and nvfp4 have one)"
    if not layout.isa.multiplies_integers:
        return f"and kernels need AVX2 or AVX-512 (the instruction set in use is {layout.isa.name})"
    return ""


def prepare_int8(layout: Layout, n_inputs: int) -> Preparation:
    """Activations as integers of 8 bits, a scale for each group."""
    return prepare_rounded(8, layout, n_inputs, prepared_bytes(layout, n_inputs))


@functools.cache
def scratch_bytes(kind: Isa) -> int:
    """Bytes that a thread needs for the panels of a product, whatever its format."""
    layouts = [Layout("affine", 8, group, "f32", kind) for group in _GROUPS]
    return ROW_VECTORS * max(panel_groups(layout) * record_bytes(layout) for layout in layouts)


@functools.cache
def int8_product(key: int) -> Any:
    """The compiled callback for the layout with this key."""
    return compile_callback(p.SIGNATURE, _make(key, from_key(key)))


@numba.njit(inline="always")
def rows_ahead(a: Any, row: int, n_rows: int, tile_rows: int) -> tuple[int, int, int]:
    """Bytes from the codes, scales and biases of a tile's rows to those of the rows that are wanted after them."""
    codes, scales = row * a[p.CODES_STRIDE], row * a[p.SCALES_STRIDE]
    if row + tile_rows < n_rows:
        return tile_rows * a[p.CODES_STRIDE], tile_rows * a[p.SCALES_STRIDE], tile_rows * a[p.SCALES_STRIDE]
    return (
        a[p.NEXT_CODES] - a[p.CODES] - codes, a[p.NEXT_SCALES] - a[p.SCALES] - scales,
        a[p.NEXT_BIASES] - a[p.BIASES] - scales,
    )  # fmt: skip


def _make(key: int, layout: Layout) -> Any:
    lanes, group, groups_a_panel = layout.lanes, layout.group, panel_groups(layout)
    panel_stride, input_bytes = groups_a_panel * record_bytes(layout), group + FACTOR_BYTES
    tile_rows, tile_tokens = ROW_VECTORS * lanes, layout.isa.integer_tokens

    def multiply(a: Any) -> None:
        n_rows, n_tokens, n_groups = a[p.N_ROWS], a[p.N_TOKENS], a[p.N_INPUTS] // group
        for row in range(0, n_rows, tile_rows):
            ahead = rows_ahead(a, row, n_rows, tile_rows)
            for begin in range(0, n_groups, groups_a_panel):
                count = min(groups_a_panel, n_groups - begin)
                for part in range(ROW_VECTORS):
                    first = min(row + part * lanes, n_rows - 1)
                    codes, scales = a[p.CODES] + first * a[p.CODES_STRIDE], a[p.SCALES] + first * a[p.SCALES_STRIDE]
                    biases, panel = a[p.BIASES] + first * a[p.SCALES_STRIDE], a[p.PANEL] + part * panel_stride
                    if n_tokens > FEW_TOKENS:
                        fill_panel(
                            key, codes, a[p.CODES_STRIDE], scales, a[p.SCALES_STRIDE], biases, n_rows - first, ahead[0],
                            ahead[1], ahead[2], begin, count, panel,
                        )  # fmt: skip
                    else:
                        multiply_int8_few(
                            key, n_tokens, codes, a[p.CODES_STRIDE], scales, a[p.SCALES_STRIDE], biases, n_rows - first,
                            ahead[0], ahead[1], ahead[2], begin, count, panel, a[p.INPUTS], begin * input_bytes,
                            a[p.OUT] + 4 * (row + part * lanes), a[p.OUT_STRIDE],
                        )  # fmt: skip
                if n_tokens <= FEW_TOKENS:
                    continue
                for token in range(0, n_tokens, tile_tokens):
                    multiply_int8_tile(
                        key, min(tile_tokens, n_tokens - token), count, a[p.PANEL], panel_stride,
                        a[p.INPUTS] + 8 * token, begin * input_bytes, a[p.OUT] + 4 * (token * a[p.OUT_STRIDE] + row),
                        a[p.OUT_STRIDE], 1 if begin == 0 else 0,
                    )  # fmt: skip

    return multiply
