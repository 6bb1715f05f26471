"""Activations in the order that weights are decoded in (`layout`), with the sums that affine biases meet."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types

from coterie.backends.cpu.atoms import load_f32, load_u32, store_f32
from coterie.backends.cpu.jit import compile_callback
from coterie.backends.cpu.kernels.rounding import round_activations
from coterie.backends.cpu.layout import Layout, activation_order
from coterie.backends.cpu.pool import Phase, Pool, address_of

JOB = types.void(types.CPointer(types.int64), types.int64, types.int64)

# Words of every job that prepares activations; behind them stands what a kind of preparation has of its own.
X, X_STRIDE, PREPARED, PREPARED_STRIDE, N_ROWS, ROWS_A_UNIT, N_INPUTS = range(7)
ORDER, FACTOR, BLOCK, GROUP = range(7, 11)

WORTH_WAKING = 1 << 15
"""Numbers to reorder from which a second thread gains more than it costs to wake."""

_jobs: dict[str, Any] = {}


def _prepare_rows(a: Any, unit: int, _thread: int) -> None:
    n_inputs, block, group = a[N_INPUTS], a[BLOCK], a[GROUP]
    n_blocks = (n_inputs + block - 1) // block
    first = unit * a[ROWS_A_UNIT]
    for row in range(first, min(first + a[ROWS_A_UNIT], a[N_ROWS])):
        x = a[X] + row * a[X_STRIDE]
        prepared = a[PREPARED] + row * a[PREPARED_STRIDE]
        for index in range(n_blocks):
            base = index * block
            if base + block <= n_inputs:
                for place in range(block):
                    source = base + load_u32(a[ORDER], place)
                    store_f32(prepared, base + place, load_f32(x, source) * load_f32(a[FACTOR], place))
            else:
                for place in range(block):
                    source = base + load_u32(a[ORDER], place)
                    value = (
                        load_f32(x, source) * load_f32(a[FACTOR], place) if source < n_inputs else types.float32(0.0)
                    )
                    store_f32(prepared, base + place, value)
        if group > 0:
            sums = n_blocks * block
            for index in range(n_inputs // group):
                total = types.float32(0.0)
                for place in range(index * group, index * group + group):
                    total += load_f32(x, place)
                store_f32(prepared, sums + index, total)


def row_bytes(layout: Layout, n_inputs: int) -> int:
    """Bytes of a prepared row: whole blocks, then a sum a group where the layout has biases; whole cache lines."""
    n_sums = n_inputs // layout.group if layout.kind == "affine" else 0
    return -(-4 * (layout.padded(n_inputs) + n_sums) // 64) * 64


def sums_group(layout: Layout) -> int:
    """The group size that sums are made for; 0 where the layout has no biases."""
    return layout.group if layout.kind == "affine" else 0


@dataclass(frozen=True, slots=True)
class Preparation:
    """How activations are made ready for a matrix; matrices whose preparations are equal can share them.

    function: address of the job. n_inputs, own: its words from N_INPUTS on. row_bytes: of a prepared row.
    """

    function: int
    n_inputs: int
    own: tuple[int, ...]
    row_bytes: int

    @property
    def rows_a_unit(self) -> int:
        """Rows that are prepared in one go."""
        return max(1, min(16, 8192 // self.n_inputs))

    def words(self, x: int, x_stride: int, prepared: int, n_rows: int) -> list[int]:
        """The job's words for rows of f32 at address x, to be prepared at another."""
        return [x, x_stride, prepared, self.row_bytes, n_rows, self.rows_a_unit, self.n_inputs, *self.own]

    def phase(self, pool: Pool, x: np.ndarray, prepared: int) -> Phase:
        """The job that prepares x f32 [R, K]."""
        words = self.words(address_of(x), x.strides[0], prepared, len(x))
        return self.function, pool.place(words), -(-len(x) // self.rows_a_unit), x.size >= WORTH_WAKING


def prepare_f32(layout: Layout, n_inputs: int) -> Preparation:
    """Activations as f32 numbers."""
    order, factor = activation_order(layout.key)
    own = (address_of(order), address_of(factor), layout.block, sums_group(layout))
    return Preparation(job("prepare", _the_job), n_inputs, own, row_bytes(layout, n_inputs))


def prepare_rounded(bits: int, layout: Layout, n_inputs: int, row_bytes: int) -> Preparation:
    """Activations as integers of 16 or 8 bits, a scale for each group."""
    # All layouts whose activations are rounded alike share them: the scales' dtype makes no difference.
    key, group = Layout(layout.kind, layout.bits, layout.group, "f32", layout.isa).key, layout.group
    function = job(f"round.{bits}.{key}", lambda: _make_round(bits, key, group))
    return Preparation(function, n_inputs, (), row_bytes)


def _make_round(bits: int, key: int, group: int) -> Any:
    def round_rows(a: Any, unit: int, _thread: int) -> None:
        """Unit: some rows of activations."""
        first = unit * a[ROWS_A_UNIT]
        for row in range(first, min(first + a[ROWS_A_UNIT], a[N_ROWS])):
            x, prepared = a[X] + row * a[X_STRIDE], a[PREPARED] + row * a[PREPARED_STRIDE]
            round_activations(bits, key, x, prepared, a[N_INPUTS], 0, a[N_INPUTS] // group)

    return round_rows


def _the_job() -> Any:
    return _prepare_rows


def job(name: str, make: Callable[[], Any]) -> int:
    """The address of the callback for the function that `make` returns, compiled or loaded at first use, as `name`."""
    callback = _jobs.get(name)
    if callback is None:
        callback = _jobs.setdefault(name, compile_callback(JOB, make()))
    return int(callback.address)
