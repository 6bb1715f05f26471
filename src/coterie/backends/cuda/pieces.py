"""Rows of a matrix too long for one program: their columns in pieces, whose sums are added in order."""

import torch

from coterie.backends.cuda.kernels.pieces import add_pieces_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv

_BLOCK = 1024


def room_for(pieces: int, out: torch.Tensor) -> torch.Tensor:
    """Where the sums of each piece go, f32 [pieces, n, N] for out [n, N]."""
    return torch.empty((pieces, *out.shape), dtype=torch.float32, device=out.device)


def add_pieces(sums: torch.Tensor, out: torch.Tensor) -> None:
    """Their sums into out [n, N]."""
    pieces, n, n_columns = sums.shape
    with on_device_of(out):
        launch(add_pieces_kernel, (n, cdiv(n_columns, _BLOCK)), sums, out, n, n_columns, pieces, _BLOCK, **early(out))
