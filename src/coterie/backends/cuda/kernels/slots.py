"""The outputs of a token's experts, weighted and summed."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous
from coterie.ops.combine import SKIPPED_BELOW

_SKIPPED_BELOW = tl.constexpr(SKIPPED_BELOW)


@triton.jit
def sum_slots_kernel(
    values, ids, weights, out, n_experts, top_k, n_columns,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of a token's sum over its slots, at most SLOTS, of weight * values; out [T, n_columns].

    Slots of tiny weights, and those whose id is no expert's, are left out: nothing of theirs is read. Ids and weights
    are older than the kernel before.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.arange(0, SLOTS)
    expert = tl.load(ids + token * top_k + slot, mask=slot < top_k, other=-1)
    weight = tl.load(weights + token * top_k + slot, mask=slot < top_k, other=0.0)
    used = (expert >= 0) & (expert < n_experts) & (tl.abs(weight) >= _SKIPPED_BELOW)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    place = (token * top_k + slot)[:, None] * n_columns + column[None, :]
    mask = used[:, None] & (column < n_columns)[None, :]
    value = tl.load(values + place, mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(tl.where(used, weight, 0.0)[:, None] * value, 0)
    tl.store(out + token * n_columns + column, total.to(out.dtype.element_ty), mask=column < n_columns)
