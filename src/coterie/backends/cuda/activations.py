"""Gated activations of whole tensors."""

import torch

from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.kernels.activation import glu_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv

_BLOCK = 1024


@within_memory
def glu(gate: torch.Tensor, up: torch.Tensor, activation: str) -> torch.Tensor:
    out = torch.empty_like(gate)
    _launch(gate.reshape(1, -1), up.reshape(1, -1), out, activation)
    return out


@within_memory
def glu_fused(gate_up: torch.Tensor, activation: str) -> torch.Tensor:
    half = gate_up.shape[-1] // 2
    rows = gate_up.reshape(-1, 2 * half)
    out = gate_up.new_empty((*gate_up.shape[:-1], half))
    _launch(rows[:, :half], rows[:, half:], out, activation)
    return out


def _launch(gate: torch.Tensor, up: torch.Tensor, out: torch.Tensor, activation: str) -> None:
    n_rows, n_columns = gate.shape
    n_blocks = cdiv(n_columns, _BLOCK)
    with on_device_of(gate):
        launch(
            glu_kernel, (n_rows * n_blocks,),
            gate, up, out, n_columns, gate.stride(0), n_blocks, activation, _BLOCK, **early(gate),
        )  # fmt: skip
