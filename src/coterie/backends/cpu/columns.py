"""Products with the matrix the other way round: x @ w, where the rows of w run along the result.

A weight row is then not summed over but spread: result += x[k] * row k. Rows are unpacked block by block, each once for
up to `MAX_TOKENS` tokens, and the result keeps the order of decoding until it is complete.
"""

import functools
from typing import Any

import numpy as np

from coterie.backends.cpu.atoms import call_product, load_f32, load_i64, load_u32, store_f32, store_i64
from coterie.backends.cpu.gathered import group_rows
from coterie.backends.cpu.jit import compile_callback
from coterie.backends.cpu.kernels.gemm import unpack_blocks
from coterie.backends.cpu.layout import activation_order, from_key
from coterie.backends.cpu.matrix import (
    BIASES,
    CODES,
    CODES_EXPERT,
    CODES_STRIDE,
    SCALES,
    SCALES_EXPERT,
    SCALES_STRIDE,
    Matrix,
    matrix_for,
)
from coterie.backends.cpu.pool import address_of, get_pool
from coterie.backends.cpu.prepare import job
from coterie.backends.cpu.product import MAX_TOKENS, SIGNATURE
from coterie.backends.cpu.scratch import group_at
from coterie.formats import Packed

MATRIX, GROUPS, N_CHUNKS, CHUNK, N_BLOCKS, X, X_STRIDE, ROWS, OUT, OUT_STRIDE, PLACES, N_SUMMED, N_OUT = range(13)
ORDER, FACTOR, BLOCK, UNPACK, SCRATCH, SCRATCH_STRIDE = 13, 14, 15, 16, 17, 18

_WEIGHTS_A_CHUNK = 512


def _make_unpack(key: int) -> Any:
    def unpack(a: Any) -> None:
        unpack_blocks(key, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8])

    return unpack


@functools.cache
def _unpack(key: int) -> Any:
    return compile_callback(SIGNATURE, _make_unpack(key))


def _spread_rows(a: Any, unit: int, thread: int) -> None:
    """Unit: a few blocks of all weight rows of one group's matrix."""
    group, chunk = unit // a[N_CHUNKS], unit % a[N_CHUNKS]
    expert, first, count = group_at(a[GROUPS], group)
    block, begin_block = a[BLOCK], chunk * a[CHUNK]
    n_blocks = min(a[CHUNK], a[N_BLOCKS] - begin_block)
    width = n_blocks * block
    matrix, call = a[MATRIX], a[SCRATCH] + thread * a[SCRATCH_STRIDE]
    panel = call + 128
    totals = panel + 4 * a[CHUNK] * block
    scales = expert * load_i64(matrix, SCALES_EXPERT)
    for begin in range(first, first + count, MAX_TOKENS):
        n_tokens = min(MAX_TOKENS, first + count - begin)
        for index in range(n_tokens * width):
            store_f32(totals, index, 0.0)
        for row in range(a[N_SUMMED]):
            row_scales = scales + row * load_i64(matrix, SCALES_STRIDE)
            store_i64(
                call,
                0,
                load_i64(matrix, CODES)
                + expert * load_i64(matrix, CODES_EXPERT)
                + row * load_i64(matrix, CODES_STRIDE),
            )
            store_i64(call, 1, load_i64(matrix, SCALES) + row_scales)
            store_i64(call, 2, load_i64(matrix, BIASES) + row_scales)
            store_i64(call, 3, a[N_OUT])
            store_i64(call, 4, begin_block)
            store_i64(call, 5, n_blocks)
            store_i64(call, 6, panel)
            store_i64(call, 7, load_i64(matrix, CODES_STRIDE))
            store_i64(call, 8, load_i64(matrix, SCALES_STRIDE))
            call_product(a[UNPACK], call)
            for token in range(n_tokens):
                value = load_f32(a[X] + load_i64(a[ROWS], begin + token) * a[X_STRIDE], row)
                line = totals + 4 * width * token
                for index in range(width):
                    store_f32(line, index, load_f32(line, index) + value * load_f32(panel, index))
        for token in range(n_tokens):
            out = a[OUT] + load_i64(a[PLACES], begin + token) * a[OUT_STRIDE]
            for index in range(width):
                inside = index % block
                column = begin_block * block + index - inside + load_u32(a[ORDER], inside)
                if column < a[N_OUT]:
                    store_f32(out, column, load_f32(totals, token * width + index) * load_f32(a[FACTOR], inside))


def _the_job() -> Any:
    return _spread_rows


def multiply_columns(x: np.ndarray, weight: Packed | np.ndarray, rows: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """x [B, K][rows] @ weight [E, K, N][experts] (or [K, N]): f32 [R, N]; rows and experts int64 [R]."""
    matrix: Matrix = matrix_for(weight)
    layout = from_key(matrix.layout.key)
    source = np.ascontiguousarray(x, np.float32)
    out = np.empty((len(rows), matrix.n_inputs), np.float32)
    places, groups = group_rows(experts)
    sorted_rows = rows[places]
    order, factor = activation_order(layout.key)
    chunk = max(1, _WEIGHTS_A_CHUNK // layout.block)
    n_blocks = layout.padded(matrix.n_inputs) // layout.block
    n_chunks = -(-n_blocks // chunk)
    scratch_stride = 128 + 4 * chunk * layout.block * (MAX_TOKENS + 1)
    pool = get_pool()
    with pool.lock:
        words = [
            address_of(matrix.words), address_of(groups), n_chunks, chunk, n_blocks, address_of(source),
            source.strides[0], address_of(sorted_rows), address_of(out), out.strides[0], address_of(places),
            matrix.n_rows, matrix.n_inputs, address_of(order), address_of(factor), layout.block,
            _unpack(layout.key).address,
            pool.buffer("columns", pool.n_threads * scratch_stride), scratch_stride,
        ]  # fmt: skip
        arguments = np.array(words, np.int64)
        pool.run((job("columns", _the_job), address_of(arguments), len(groups) * n_chunks, True))
    return out
