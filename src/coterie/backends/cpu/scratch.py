"""A thread's own memory while it works on a unit: the words of a `product` call, tables, a panel, sums, and result
tiles.
"""

import functools
from typing import Any

import numba

from coterie.backends.cpu import product as p
from coterie.backends.cpu.atoms import call_product, load_f32, load_i64, store_f32, store_i64
from coterie.backends.cpu.int8_product import scratch_bytes as int8_bytes
from coterie.backends.cpu.isa import Isa
from coterie.backends.cpu.matrix import (
    ADDED,
    ADDED_EXPERT,
    BIASES,
    CODES,
    CODES_EXPERT,
    CODES_STRIDE,
    N_INPUTS,
    PRODUCT,
    SCALES,
    SCALES_EXPERT,
    SCALES_STRIDE,
)

CALL = 0
TABLE = 8 * p.CALL_WORDS
TILE = TABLE + 8 * p.MAX_TOKENS
TILE_BYTES = 4 * p.MAX_TOKENS * p.MAX_ROWS
SECOND_TILE = TILE + TILE_BYTES
PANEL = SECOND_TILE + TILE_BYTES


@functools.cache
def thread_bytes(isa: Isa) -> int:
    """Bytes of one thread's scratch."""
    return -(-(PANEL + max(sum(p.scratch_bytes(isa)), int8_bytes(isa))) // 4096) * 4096


@functools.cache
def sums_offset(isa: Isa) -> int:
    """Where the sums of a product begin."""
    return PANEL + p.scratch_bytes(isa)[0]


@numba.njit
def group_at(groups: Any, index: Any) -> Any:
    """(expert, first place, count) of a group of routed rows; groups: address of int64 [G, 3]."""
    return load_i64(groups, 3 * index), load_i64(groups, 3 * index + 1), load_i64(groups, 3 * index + 2)


@numba.njit
def expect(scratch: Any, matrix: Any, expert: Any, row: Any) -> None:
    """Say which weight rows the product after the coming `multiply` begins with: kernels that prefetch do so for them.

    They are a guess and may lie anywhere.
    """
    call = scratch + CALL
    scale_offset = expert * load_i64(matrix, SCALES_EXPERT) + row * load_i64(matrix, SCALES_STRIDE)
    codes = load_i64(matrix, CODES) + expert * load_i64(matrix, CODES_EXPERT) + row * load_i64(matrix, CODES_STRIDE)
    store_i64(call, p.NEXT_CODES, codes)
    store_i64(call, p.NEXT_SCALES, load_i64(matrix, SCALES) + scale_offset)
    store_i64(call, p.NEXT_BIASES, load_i64(matrix, BIASES) + scale_offset)


@numba.njit
def multiply(
    scratch: Any, sums: Any, matrix: Any, expert: Any, row: Any, n_rows: Any, inputs: Any, n_tokens: Any, tile: Any
) -> None:
    """tile[token, i] = weight row (row + i) of `expert` . prepared activations of the token, plus what the matrix adds.

    tile: address of f32 [n_tokens, MAX_ROWS]; inputs: address of int64 addresses of the tokens' prepared rows.
    """
    call = scratch + CALL
    codes_stride, scales_stride = load_i64(matrix, CODES_STRIDE), load_i64(matrix, SCALES_STRIDE)
    scale_offset = expert * load_i64(matrix, SCALES_EXPERT) + row * scales_stride
    store_i64(call, p.CODES, load_i64(matrix, CODES) + expert * load_i64(matrix, CODES_EXPERT) + row * codes_stride)
    store_i64(call, p.CODES_STRIDE, codes_stride)
    store_i64(call, p.SCALES, load_i64(matrix, SCALES) + scale_offset)
    store_i64(call, p.SCALES_STRIDE, scales_stride)
    store_i64(call, p.BIASES, load_i64(matrix, BIASES) + scale_offset)
    store_i64(call, p.N_INPUTS, load_i64(matrix, N_INPUTS))
    store_i64(call, p.N_ROWS, n_rows)
    store_i64(call, p.INPUTS, inputs)
    store_i64(call, p.N_TOKENS, n_tokens)
    store_i64(call, p.OUT, tile)
    store_i64(call, p.OUT_STRIDE, p.MAX_ROWS)
    store_i64(call, p.PANEL, scratch + PANEL)
    store_i64(call, p.SUMS, sums)
    call_product(load_i64(matrix, PRODUCT), call)
    added = load_i64(matrix, ADDED)
    if added != 0:
        added += expert * load_i64(matrix, ADDED_EXPERT) + 4 * row
        for token in range(n_tokens):
            line = tile + 4 * p.MAX_ROWS * token
            for index in range(n_rows):
                store_f32(line, index, load_f32(line, index) + load_f32(added, index))
