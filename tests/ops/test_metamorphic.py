"""What must not change when the question is asked in another way: order of tokens, names of experts, batches,
padding.
"""

import numpy as np
import pytest

import coterie
from array_kinds import KINDS, KINDS_HERE, floats, give, pack, ready, take
from coterie import Experts, Packed, Routing
from coterie.arrays import as_numpy
from layers import FOUR_BITS, experts_of, routing_of, run
from tolerance import assert_close, bound

E, H, INNER, K = 12, 64, 96, 3
NEAR = 2 * bound("float32", H, INNER, K)
"""Two results, each within the bound of the same reference."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    ready(request.param, "moe", "gather_qmm", "route", "weighted_sum")
    return str(request.param)


def case(rng: np.random.Generator, kind: str, n_tokens: int = 90) -> tuple:
    experts = experts_of(rng, kind, E, H, INNER, biases=True)
    return (floats(rng, (n_tokens, H)), *routing_of(rng, n_tokens, K, E), experts)


def near(found: np.ndarray, expected: np.ndarray) -> None:
    assert_close(found, expected.astype(np.float64), NEAR, may_be_exact=True)


def with_experts_in_order(experts: Experts, order: np.ndarray, kind: str) -> Experts:
    def picked(part: object) -> object:
        if isinstance(part, Packed):
            return Packed(*(picked(inner) for inner in (part.codes, part.scales, part.biases)), bits=4, group_size=32)
        return give(as_numpy(part)[order], kind)

    biases = {name: picked(getattr(experts, name)) for name in ("gate_bias", "up_bias", "down_bias")}
    return Experts(picked(experts.gate), picked(experts.up), picked(experts.down), **biases)


def test_permuting_tokens_permutes_results(kind: str, rng) -> None:
    x, ids, weights, experts = case(rng, kind)
    order = rng.permutation(len(x))
    near(run(x[order], ids[order], weights[order], experts), run(x, ids, weights, experts)[order])


def test_permuting_experts_with_their_ids_changes_nothing(kind: str, rng) -> None:
    x, ids, weights, experts = case(rng, kind)
    order = rng.permutation(E)
    moved = with_experts_in_order(experts, order, kind)
    near(run(x, np.argsort(order)[ids].astype(np.uint32), weights, moved), run(x, ids, weights, experts))


def test_permuting_the_slots_of_a_token_changes_nothing(kind: str, rng) -> None:
    x, ids, weights, experts = case(rng, kind)
    near(run(x, ids[:, ::-1].copy(), weights[:, ::-1].copy(), experts), run(x, ids, weights, experts))


def test_an_expert_twice_is_one_with_the_sum_of_both_weights(kind: str, rng) -> None:
    x, ids, weights, experts = case(rng, kind)
    ids[:, 1] = ids[:, 0]
    merged = np.stack([weights[:, 0] + weights[:, 1], weights[:, 2]], 1)
    near(run(x, ids, weights, experts), run(x, ids[:, [0, 2]].copy(), merged, experts))


@pytest.mark.parametrize("cut", [1, 21, 64, 89])
def test_a_split_batch_gives_what_the_whole_gives(kind: str, cut: int, rng) -> None:
    x, ids, weights, experts = case(rng, kind)
    parts = [run(x[part], ids[part], weights[part], experts) for part in (slice(0, cut), slice(cut, None))]
    near(np.concatenate(parts), run(x, ids, weights, experts))


def test_padding_with_tokens_without_weight_changes_nothing(kind: str, rng) -> None:
    x, ids, weights, experts = case(rng, kind, 21)
    padding = np.full((40, H), np.nan, np.float32)
    padded = run(
        np.concatenate([x, padding]),
        np.concatenate([ids, np.zeros((40, K), np.uint32)]),
        np.concatenate([weights, np.zeros((40, K), np.float32)]),
        experts,
    )
    near(padded[:21], run(x, ids, weights, experts))
    np.testing.assert_array_equal(padded[21:], 0)


def test_results_do_not_depend_on_what_ran_before(kind: str, rng) -> None:
    """Scratch memory is poisoned by calls that leave NaN, and then large numbers, behind: the answers are bit-equal."""
    x, ids, weights, experts = case(rng, kind)
    answers = []
    for poison in (np.nan, 1e30):
        run(np.full_like(x, poison), ids, weights, experts)
        run(np.full((1, H), poison, np.float32), ids[:1], weights[:1], experts)
        answers.append(run(x, ids, weights, experts))
    np.testing.assert_array_equal(*answers)


def test_doubling_the_weights_doubles_the_result(kind: str, rng) -> None:
    x, ids, weights, experts = case(rng, kind)
    np.testing.assert_array_equal(run(x, ids, 2 * weights, experts), 2 * run(x, ids, weights, experts))


def test_the_layer_is_its_parts(kind: str, rng) -> None:
    """group, gather_qmm, glu, weighted_sum, one after the other."""
    x, ids, weights, _ = case(rng, kind)
    shapes = ((E, INNER, H), (E, INNER, H), (E, H, INNER))
    packs = [pack(floats(rng, shape, scale=0.1), FOUR_BITS, kind) for shape in shapes]
    groups = coterie.group(give(ids, kind), E)
    order = as_numpy(groups.order)
    rows, chosen = give(x[order // K][:, None], kind), give(ids.reshape(-1)[order], kind)
    gate, up = (coterie.gather_qmm(rows, part, rhs_indices=chosen, sorted_indices=True) for part in packs[:2])
    outputs = coterie.gather_qmm(coterie.glu(gate, up, "gelu"), packs[2], rhs_indices=chosen, sorted_indices=True)
    unsorted = as_numpy(outputs)[as_numpy(groups.inverse)].reshape(len(x), K, H)
    found = take(coterie.weighted_sum(give(unsorted, kind), give(weights, kind)), kind, "float32")
    near(found, run(x, ids, weights, Experts(*packs, "gelu")))


def test_shifting_all_logits_changes_no_softmax_routing(kind: str, rng) -> None:
    logits = np.round(floats(rng, (50, 60), scale=4) * 16) / 16
    plain, shifted = (coterie.route(give(values, kind), 8) for values in (logits, logits + np.float32(32)))
    np.testing.assert_array_equal(as_numpy(plain.ids), as_numpy(shifted.ids))
    np.testing.assert_allclose(as_numpy(plain.weights), as_numpy(shifted.weights), rtol=1e-6)


def test_kinds_agree_with_each_other(rng) -> None:
    x, ids, weights, experts = case(rng, "numpy")
    found = []
    for kind in KINDS_HERE:
        ready(kind, "moe")
        found.append(run(x, ids, weights, with_experts_in_order(experts, np.arange(E), kind)))
    np.testing.assert_array_equal(found[0], found[1])
    near(found[2], found[0])


def test_routing_records_travel_between_calls(kind: str, rng) -> None:
    x, _, _, experts = case(rng, kind)
    routing = coterie.route(give(floats(rng, (90, E)), kind), K)
    again = Routing(give(as_numpy(routing.ids), kind), give(as_numpy(routing.weights), kind))
    results = [take(coterie.moe(give(x, kind), record, experts), kind, "float32") for record in (routing, again)]
    np.testing.assert_array_equal(*results)
