"""Routed rows sorted by expert, where they are too many for the launch that brings activations into order."""

import torch

from coterie.backends.cuda.kernels.columns import BLOCK_ENTRY
from coterie.backends.cuda.kernels.sort import count_slots_kernel, list_blocks_kernel, place_slots_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.routing import group
from coterie.backends.cuda.sizes import cdiv, next_power_of_2

_MOST_EXPERTS = 1024
"""Experts whose counts a program sees together."""

_MOST_COUNTS = 1 << 14
"""Counts, of experts and programs, that a program has in registers; as many pairs of slots it compares."""

_MOST_PROGRAMS = 128
_MOST_ROWS = 128


def sort_slots(ids: torch.Tensor, n_experts: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """order int32 [n] of ids int32 [n], and the table of blocks of so many rows, int32 [blocks, BLOCK_ENTRY]: expert,
    first place and the end of its expert's, or an expert of -1.
    """
    blocks = blocks_for(ids.numel(), n_experts, rows, ids.device)
    if n_experts > _MOST_EXPERTS:
        order, offsets, _ = group(ids, n_experts)
        with on_device_of(ids):
            launch(
                list_blocks_kernel, (n_experts,),
                offsets.view(torch.int32), blocks, n_experts, len(blocks), next_power_of_2(n_experts), rows,
                **early(ids),
            )  # fmt: skip
        return order.view(torch.int32), blocks
    n, experts = ids.numel(), max(2, next_power_of_2(n_experts))
    at_once = min(_MOST_ROWS, max(16, _MOST_COUNTS // experts))
    width = cdiv(cdiv(n, min(_MOST_PROGRAMS, _MOST_COUNTS // experts)), at_once) * at_once
    n_programs = cdiv(n, width)
    counts = torch.empty((n_programs, experts), dtype=torch.int32, device=ids.device)
    order = torch.empty(n, dtype=torch.int32, device=ids.device)
    with on_device_of(ids):
        launch(count_slots_kernel, (n_programs,), ids, counts, n, n_experts, width, experts, at_once, **early(ids))
        launch(
            place_slots_kernel, (n_programs,),
            ids, counts, order, blocks, n, n_experts, len(blocks), width,
            rows, experts, next_power_of_2(n_programs), at_once, **early(ids), num_warps=8,
        )  # fmt: skip
    return order, blocks


def blocks_for(n_slots: int, n_experts: int, rows: int, device: torch.device) -> torch.Tensor:
    """Room for the table of blocks: each expert that has slots may leave one block that is not full."""
    return torch.empty((n_slots // rows + min(n_experts, n_slots), BLOCK_ENTRY.value), dtype=torch.int32, device=device)
