"""Gated activations, on separate and on fused halves."""

import mlx.core as mx

from coterie.backends.mlx.metal import launch, rows
from coterie.ops.activations import ACTIVATIONS

GLU = launch.Kernel("glu", ("gate", "up"), shared=("activation",))
GLU_FUSED = launch.Kernel("glu_fused", ("gate_up",), shared=("activation",))


def glu(gate: mx.array, up: mx.array, activation: str) -> mx.array:
    halves = [rows.flat(gate), rows.flat(up)]
    return _run(GLU, halves, activation, halves[0].shape[1]).reshape(gate.shape)


def glu_fused(gate_up: mx.array, activation: str) -> mx.array:
    columns = gate_up.shape[-1] // 2
    return _run(GLU_FUSED, [rows.flat(gate_up)], activation, columns).reshape(*gate_up.shape[:-1], columns)


def number(activation: str) -> int:
    """The activation as the kernels know it."""
    names: tuple[str, ...] = ACTIVATIONS
    return names.index(activation)


def _run(kernel: launch.Kernel, inputs: list[mx.array], activation: str, n_columns: int) -> mx.array:
    n_rows, dtype = inputs[0].shape[0], inputs[0].dtype
    grid, threadgroup = rows.elementwise(n_columns, n_rows)
    template: launch.Template = {"T": dtype, "ACTIVATION": number(activation), "PER_THREAD": rows.PER_THREAD}
    (out,) = launch.run(
        kernel, inputs, template, grid=grid, threadgroup=threadgroup, shapes=[(n_rows, n_columns)], dtypes=[dtype]
    )
    return out
