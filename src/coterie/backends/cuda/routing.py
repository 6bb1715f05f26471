"""Routing and grouping. Ids leave as uint32; inside they are int32, which PyTorch knows better."""

import torch

from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.kernels.group import count_rows_kernel, group_few_kernel, place_rows_kernel
from coterie.backends.cuda.kernels.route import gather_topk_weights_kernel, route_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv, next_power_of_2
from coterie.errors import CapacityError
from coterie.ops.routing import RouteSpec

_FEW_ROWS = 8192
"""Routed rows up to which an expert a program looks at all of them, if the experts are not too many either."""

_FEW_LOOKS = 1 << 22
_BLOCK = 128
"""Rows that are compared with each other at a time."""

_COUNTS = 1 << 22
"""Counters, one for each expert and program; they bound the number of programs."""


@within_memory
def route(logits: torch.Tensor, spec: RouteSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """ids uint32 [T, k] and weights f32 [T, k] of logits [T, E] in any float dtype, as the spec's vectors are."""
    n_tokens, n_experts = logits.shape
    ids = torch.empty((n_tokens, spec.top_k), dtype=torch.int32, device=logits.device)
    weights = torch.empty((n_tokens, spec.top_k), dtype=torch.float32, device=logits.device)
    groups = next_power_of_2(spec.n_groups)
    members = next_power_of_2(n_experts // spec.n_groups)
    with on_device_of(logits):
        launch(
            route_kernel, (n_tokens,),
            logits, spec.selection_bias, spec.per_expert_scale, ids, weights, n_experts, float(spec.scaling_factor),
            TOP_K=spec.top_k, SLOTS=next_power_of_2(spec.top_k), SIGMOID=spec.scoring == "sigmoid",
            RENORMALIZE=spec.renormalize, BY_LOGITS=spec.selects_by_logits,
            HAS_BIAS=spec.selection_bias is not None, HAS_SCALE=spec.per_expert_scale is not None,
            N_GROUPS=spec.n_groups, TOP_GROUPS=spec.top_groups, TOP2=spec.group_score == "top2",
            GROUPS=groups, MEMBERS=members, num_warps=_warps(groups * members), **early(logits),
        )  # fmt: skip
    return ids.view(torch.uint32), weights


@within_memory
def gather_topk_weights(
    probs: torch.Tensor, ids: torch.Tensor, per_expert_scale: torch.Tensor | None, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """ids uint32 [T, k] and weights f32 [T, k] of probs [T, E] in any float dtype and sorted ids int32 [T, k]."""
    weights = torch.empty(ids.shape, dtype=torch.float32, device=ids.device)
    with on_device_of(probs):
        launch(
            gather_topk_weights_kernel, (len(ids),),
            probs, ids, per_expert_scale, weights, probs.shape[1], top_k,
            HAS_SCALE=per_expert_scale is not None, SLOTS=next_power_of_2(top_k), num_warps=1, **early(probs),
        )  # fmt: skip
    return ids.view(torch.uint32), weights


@within_memory
def group(ids: torch.Tensor, n_experts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """order uint32 [R], offsets uint32 [E + 1], inverse uint32 [R] of ids int32 [R]."""
    n_rows = len(ids)
    if n_rows >= 1 << 31:
        raise CapacityError(f"{n_rows} routed rows do not fit in 31-bit indices; split the tokens into several calls")
    order, inverse = torch.empty_like(ids), torch.empty_like(ids)
    offsets = torch.empty(n_experts + 1, dtype=torch.int32, device=ids.device)
    with on_device_of(ids):
        if n_rows <= _FEW_ROWS and n_rows * n_experts <= _FEW_LOOKS:
            rows = min(4096, next_power_of_2(n_rows))
            launch(
                group_few_kernel, (n_experts + 1,),
                ids, order, offsets, inverse, n_rows, n_experts, rows, num_warps=_warps(rows), **early(ids),
            )  # fmt: skip
        else:
            _group_many(ids, order, offsets, inverse, n_experts)
    return order.view(torch.uint32), offsets.view(torch.uint32), inverse.view(torch.uint32)


def _group_many(
    ids: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor, inverse: torch.Tensor, n_experts: int
) -> None:
    """Count by expert and program, add the counts up, place: a counting sort whose buckets are (expert, program)."""
    n_rows = len(ids)
    n_programs = min(cdiv(n_rows, _BLOCK), max(1, _COUNTS // (n_experts + 1)))
    rows_each = cdiv(cdiv(n_rows, n_programs), _BLOCK) * _BLOCK
    n_programs = cdiv(n_rows, rows_each)
    counts = torch.zeros((n_experts + 1) * n_programs, dtype=torch.int32, device=ids.device)
    launch(count_rows_kernel, (n_programs,), ids, counts, n_rows, n_experts, rows_each, _BLOCK, **early(ids))
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    launch(
        place_rows_kernel, (n_programs,),
        ids, counts, ends, order, offsets, inverse, n_rows, n_experts, rows_each, _BLOCK, **early(ids),
    )  # fmt: skip


def _warps(n_values: int) -> int:
    """Warps for a program that reduces over so many values: one until its threads have many each."""
    return 1 if n_values <= 512 else 4 if n_values <= 2048 else 8
