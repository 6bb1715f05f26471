"""From a token's logits to its experts and their weights, one token a program.

Experts are compared by ranks: the bits of a score in an order that integers share, because warps find the highest of 32
integers at once. Of equal ones the lowest id wins. A chosen expert, and one outside of the best groups, has the lowest
rank of all.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.activation import sigmoid
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous
from coterie.ops.routing import SIGMOID_SUM_FLOOR

_SIGMOID_SUM_FLOOR = tl.constexpr(SIGMOID_SUM_FLOOR)


_NO_RANK = tl.constexpr(-(1 << 31))
_NO_ID = tl.constexpr((1 << 31) - 1)


@triton.jit
def _rank(score):
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return tl.maximum(bits ^ ((bits >> 31) & 0x7FFFFFFF), _NO_RANK + 1)


@triton.jit
def _score(rank):
    return (rank ^ ((rank >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _best(ranks, ids, axis: tl.constexpr):
    """The lowest id of the highest rank along an axis."""
    highest = tl.max(ranks, axis, keep_dims=True)
    return tl.min(tl.where(ranks == highest, ids, _NO_ID), axis, keep_dims=True)


@triton.jit
def _within_best_groups(ranks, N_GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, TOP2: tl.constexpr):
    """`ranks` [groups, members] without those outside of the best groups."""
    groups, members = tl.arange(0, ranks.shape[0])[:, None], tl.arange(0, ranks.shape[1])[None, :]
    score = _score(tl.max(ranks, 1, keep_dims=True))
    if TOP2:
        others = tl.where(members == _best(ranks, members, 1), _NO_RANK, ranks)
        score += _score(tl.max(others, 1, keep_dims=True))
    rivals = tl.where(groups < N_GROUPS, _rank(score), _NO_RANK)
    kept = groups < 0
    for _ in range(TOP_GROUPS):
        winner = groups == _best(rivals, groups, 0)
        kept = kept | winner
        rivals = tl.where(winner, _NO_RANK, rivals)
    return tl.where(kept, ranks, _NO_RANK)


@triton.jit
def route_kernel(
    logits, selection_bias, scale, ids, weights, n_experts, scaling_factor,
    TOP_K: tl.constexpr, SLOTS: tl.constexpr, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr,
    BY_LOGITS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    N_GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, TOP2: tl.constexpr,
    GROUPS: tl.constexpr, MEMBERS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """GROUPS, MEMBERS, SLOTS: powers of two that hold the groups, the experts of one, and TOP_K."""
    token = tl.program_id(0).to(tl.int64)
    size = n_experts // N_GROUPS
    groups, members = tl.arange(0, GROUPS)[:, None], tl.arange(0, MEMBERS)[None, :]
    experts = groups * size + members
    real = (groups < N_GROUPS) & (members < size)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    row = logits + token * n_experts
    logit = tl.load(row + experts, mask=real, other=float("-inf")).to(tl.float32)
    unusable = tl.max(tl.max((~(logit < float("inf"))).to(tl.int32), 1), 0)
    peak = tl.max(tl.max(logit, 1), 0)
    total = 0.0
    if not SIGMOID and not (RENORMALIZE and BY_LOGITS):
        total = tl.sum(tl.sum(tl.exp(logit - peak), 1), 0)

    choice = logit
    if not BY_LOGITS:
        choice = sigmoid(logit) if SIGMOID else tl.exp(logit - peak) / total
    if HAS_BIAS:
        choice += tl.load(selection_bias + experts, mask=real, other=0.0).to(tl.float32)
    ranks = tl.where(real, _rank(choice), _NO_RANK)
    if N_GROUPS > 1:
        ranks = _within_best_groups(ranks, N_GROUPS, TOP_GROUPS, TOP2)
    slots = tl.arange(0, SLOTS)
    chosen, reached = tl.zeros((SLOTS,), tl.int32), tl.full((SLOTS,), _NO_RANK, tl.int32)
    for slot in range(TOP_K):
        highest = tl.max(tl.max(ranks, 1), 0)
        best = tl.min(tl.min(tl.where(ranks == highest, experts, _NO_ID), 1), 0)
        chosen, reached = tl.where(slots == slot, best, chosen), tl.where(slots == slot, highest, reached)
        ranks = tl.where(experts == best, _NO_RANK, ranks)

    filled = slots < TOP_K
    expert = tl.where(filled, chosen, 0)
    if BY_LOGITS and not HAS_BIAS:
        logit = tl.where(filled, _score(reached), float("-inf"))
    else:
        logit = tl.load(row + expert, mask=filled, other=float("-inf")).to(tl.float32)
    if SIGMOID:
        weight = tl.where(filled, sigmoid(logit), 0.0)
        if RENORMALIZE:
            weight = weight / (tl.sum(weight, 0) + _SIGMOID_SUM_FLOOR)
    elif RENORMALIZE:
        weight = tl.exp(logit - tl.max(logit, 0))
        weight = weight / tl.sum(weight, 0)
    else:
        weight = tl.exp(logit - peak) / total
    if HAS_SCALE:
        weight = weight * tl.load(scale + expert, mask=filled, other=0.0).to(tl.float32)
    usable = (unusable == 0) & (peak > float("-inf"))
    weight = tl.where(usable, weight * scaling_factor, float("nan"))
    tl.store(ids + token * TOP_K + slots, expert, mask=filled)
    tl.store(weights + token * TOP_K + slots, weight, mask=filled)


@triton.jit
def gather_topk_weights_kernel(
    probs, ids, scale, weights, n_experts, top_k, HAS_SCALE: tl.constexpr, SLOTS: tl.constexpr, EARLY: tl.constexpr
):
    """The weights of a token's ids; that of an id out of range is NaN."""
    token = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, SLOTS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    expert = tl.load(ids + token * top_k + slots, mask=slots < top_k, other=0)
    inside = (expert >= 0) & (expert < n_experts)
    read = inside & (slots < top_k)
    chosen = tl.load(probs + token * n_experts + expert, mask=read, other=0.0).to(tl.float32)
    total = tl.sum(chosen, 0)
    weight = tl.where(total > 0.0, chosen / total, 0.0)
    if HAS_SCALE:
        weight = weight * tl.load(scale + expert, mask=read, other=0.0).to(tl.float32)
    tl.store(weights + token * top_k + slots, tl.where(inside, weight, float("nan")), mask=slots < top_k)
