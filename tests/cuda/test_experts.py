"""The experts layer on CUDA tensors beside float64: forms of weights, sizes, numbers of tokens around every tile."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats
from coterie import Experts, Packed, Routing
from coterie.moe import moe_reference
from cuda.weights_made import FORMS, assert_within, experts, layer_limit, on_device, stretch, summed, weight
from layers import routing_of
from tensors import off, on
from tolerance import errors

torch = pytest.importorskip("torch")
pytest.importorskip("triton")


def run(device: str, x: np.ndarray, routing: Routing, made: Experts) -> np.ndarray:
    given = Routing(on(device, routing.ids), on(device, routing.weights))
    found = coterie.moe(on(device, x), given, on_device(device, made))
    assert found.dtype == on(device, x).dtype
    return off(found)


def check(device: str, x: np.ndarray, routing: Routing, made: Experts) -> np.ndarray:
    found = run(device, x, routing, made)
    limit = layer_limit(made, x.dtype.name, routing.ids.shape[1])
    assert_within(found, moe_reference(x, routing, made), limit)
    return found


def routed(rng: np.random.Generator, n_tokens: int, k: int, n_experts: int, empty: int | None = None) -> Routing:
    """Distinct experts for each token; weights of both signs."""
    ids, weights = routing_of(rng, n_tokens, k, n_experts, empty)
    return Routing(ids, weights * rng.choice([-1, 1], weights.shape).astype(np.float32))


LAYERS: dict[str, tuple[int, int, str, tuple[int, int, int], str, dict[str, Any]]] = {
    "one token, one expert": (1, 1, "bfloat16", (1, 64, 64), "4 bits", {}),
    "one token": (1, 3, "float32", (5, 192, 96), "3 bits", {"biases": True, "activation": "gelu_tanh"}),
    "one token, 17 experts": (1, 17, "float16", (20, 64, 32), "8 bits", {"activation": "relu"}),
    "one token, bf16, a stack for both": (1, 2, "bfloat16", (3, 160, 48), "nvfp4", {"fused": True, "biases": True}),
    "one token, three formats": (1, 2, "float32", (3, 128, 64), "4 bits", {"up": "mxfp4", "down": "8 bits"}),
    "few tokens": (3, 2, "bfloat16", (4, 128, 96), "mxfp4", {"activation": "swiglu_clamped", "biases": True}),
    "few tokens, f32": (2, 2, "float32", (4, 128, 64), "4 bits", {"fused": True, "scale_dtype": "float16"}),
    "every expert": (2, 4, "float32", (4, 80, 48), "nvfp4", {"down": "f16"}),
    "many tokens": (90, 1, "bfloat16", (2, 192, 128), "4 bits", {"scale_dtype": "bfloat16", "activation": "gelu"}),
    "many tokens, plain": (196, 2, "bfloat16", (2, 72, 136), "bf16", {"biases": True}),
    "many tokens, a stack for both": (
        70, 2, "float32", (3, 64, 96), "8 bits", {"fused": True, "biases": True, "activation": "swiglu_clamped"},
    ),
    "many tokens, three formats": (20, 2, "float32", (3, 128, 64), "8 bits", {"up": "3 bits", "down": "bf16"}),
    "groups wider than a tile": (40, 1, "bfloat16", (2, 128, 256), "2 bits", {"biases": True}),
    "groups wider than a tile, f32": (9, 2, "float32", (4, 128, 256), "2 bits", {"scale_dtype": "bfloat16"}),
    "plain, not whole tiles": (33, 2, "float32", (3, 72, 100), "bf16", {"activation": "gelu"}),
    "plain f32": (6, 2, "float16", (3, 100, 33), "f32", {"activation": "relu", "biases": True}),
    "mxfp8": (50, 2, "float16", (3, 64, 96), "mxfp8", {"activation": "gelu_tanh", "down": "3 bits"}),
}  # fmt: skip
"""Tokens, k, dtype of activations, (E, H, I), form of gate, and what is not usual."""


@pytest.mark.usefixtures("fenced")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_meet_their_reference(doors: str, name: str, rng: np.random.Generator) -> None:
    n_tokens, k, dtype, sizes, form, options = LAYERS[name]
    made = experts(rng, sizes, form, **options)
    empty = 1 if sizes[0] > k else None
    check(doors, floats(rng, (n_tokens, sizes[1]), dtype), routed(rng, n_tokens, k, sizes[0], empty), made)


@pytest.mark.usefixtures("fenced")
@pytest.mark.parametrize(
    ("dtype", "tokens"),
    [("bfloat16", (8, 9, 32, 33, 96, 97, 130)), ("float32", (4, 5, 16, 17, 48, 49))],
)
def test_numbers_of_tokens_around_tiles(
    doors: str, dtype: str, tokens: tuple[int, ...], rng: np.random.Generator
) -> None:
    """Two experts: slots for each are half of the tokens, in one column each or two."""
    made = experts(rng, (2, 64, 64), "4 bits", biases=True)
    for n_tokens in tokens:
        routing = routed(rng, n_tokens, 1, 2)
        check(doors, floats(rng, (n_tokens, 64), dtype), routing, made)
    check(doors, floats(rng, (tokens[-1], 64), dtype), Routing(np.ones_like(routing.ids), routing.weights), made)


def test_a_long_table_of_blocks_goes_in_several_launches(
    doors: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    from coterie.backends.cuda import products

    monkeypatch.setattr(products, "_MOST_PROGRAMS", 3)
    check(doors, floats(rng, (40, 64)), routed(rng, 40, 2, 6, empty=2), experts(rng, (6, 64, 32), "mxfp4"))


def test_many_rows_of_one_matrix_go_in_several_launches(
    device: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    from coterie.backends.cuda import products
    from coterie.backends.cuda.layer import run_dense

    made, x = experts(rng, (1, 64, 64), "8 bits"), floats(rng, (70, 64))
    matrices = [on_device(device, picked(stack, 0)) for stack in (made.gate, made.up, made.down)]
    expected = off(run_dense(on(device, x), *matrices, "silu", 2))
    monkeypatch.setattr(products, "_MOST_PROGRAMS", 1)
    np.testing.assert_array_equal(off(run_dense(on(device, x), *matrices, "silu", 2)), expected)


def test_exact_rounds_bfloat16_results_alone(doors: str, rng: np.random.Generator) -> None:
    """Errors of the default precision are larger than the limit of the exact one."""
    made = experts(rng, (3, 64, 64), "8 bits")
    for n_tokens in (1, 20):
        x, routing = floats(rng, (n_tokens, 64), "bfloat16"), routed(rng, n_tokens, 2, 3)
        given = on(doors, x), Routing(on(doors, routing.ids), on(doors, routing.weights)), on_device(doors, made)
        expected, limit = moe_reference(x, routing, made), layer_limit(made, "bfloat16", 2, exact=True)
        assert_within(off(coterie.moe(*given, "exact")), expected, limit)
        assert errors(off(coterie.moe(*given)), expected)[1] > limit.sums + limit.roundings


def test_an_expert_twice_in_a_token_counts_twice(doors: str, rng: np.random.Generator) -> None:
    made, weights = experts(rng, (3, 64, 32), "8 bits"), floats(rng, (6, 4))
    routing = Routing(np.array([[1, 1, 1, 1], [0, 2, 0, 2]] * 3), weights)
    for n_tokens in (1, 6):
        check(doors, floats(rng, (n_tokens, 64)), Routing(routing.ids[:n_tokens], routing.weights[:n_tokens]), made)


@pytest.mark.parametrize("form", ["4 bits", "f32"])
@pytest.mark.parametrize("n_tokens", [1, 20])
def test_nothing_of_what_is_skipped_reaches_the_sum(
    doors: str, n_tokens: int, form: str, rng: np.random.Generator
) -> None:
    """Expert 2 is NaN and infinite throughout, chosen by everybody, with weights of zero and next to it."""
    made = experts(rng, (4, 64, 64), form, biases=True)
    limit = layer_limit(made, "float32", 3)
    for part in (made.gate, made.up, made.down):
        (part if form == "f32" else part.scales)[2] = np.inf
    made.down_bias[2] = np.nan
    ids, weights = routing_of(rng, n_tokens, 3, 4)
    ids[:] = [0, 2, 3]
    weights[:, 1] = np.resize([0.0, -9.9e-11, 9.9e-11], n_tokens)
    x = floats(rng, (n_tokens, 64))
    assert_within(run(doors, x, Routing(ids, weights), made), moe_reference(x, Routing(ids, weights), made), limit)
    weights[0, 1] = 1.1e-10
    assert not np.isfinite(run(doors, x, Routing(ids, weights), made)[0]).any()


@pytest.mark.usefixtures("fenced")
@pytest.mark.parametrize("n_tokens", [1, 3, 14])
def test_ids_of_no_expert_add_nothing(doors: str, n_tokens: int, rng: np.random.Generator) -> None:
    """While a graph is captured nobody can refuse them. Behind the last expert lies another that is not for us."""
    from coterie.backends import cuda
    from coterie.backends.cuda.layer import run_slots

    made = experts(rng, (4, 64, 32), "8 bits")
    ids, weights = routing_of(rng, n_tokens, 2, 3)
    expected = moe_reference(x := floats(rng, (n_tokens, 64)), Routing(ids, weights), made)
    strangers = np.resize(np.array([[-1, 3], [2**31 - 1, -(2**31)]], np.int32), (n_tokens, 2))
    ids = np.stack([strangers[:, 0], ids[:, 0].astype(np.int32), strangers[:, 1], ids[:, 1].astype(np.int32)], 1)
    weights = np.stack([np.ones_like(weights[:, 0]), weights[:, 0], np.ones_like(weights[:, 0]), weights[:, 1]], 1)
    ours = Experts(*(picked(on_device(doors, stack), slice(3)) for stack in (made.gate, made.up, made.down)))
    given = on(doors, x), on(doors, ids), on(doors, weights), ours
    found = cuda.moe(given[0], Routing(*given[1:3], 3), given[3])
    assert_within(off(found), expected, layer_limit(made, "float32", 4))
    values = off(run_slots(*given, 2, torch.float32).values).reshape(n_tokens, 4, 64)
    assert np.isnan(values[:, [0, 2]]).all(), "what was allocated for them is not touched"


@pytest.mark.parametrize(("form", "k", "parts"), [("4 bits", 2, 1), ("8 bits", 2, 2), ("mxfp4", 3, 2), ("f16", 5, 1)])
def test_a_row_alone_has_the_bits_that_it_has_among_others(
    doors: str, form: str, k: int, parts: int, rng: np.random.Generator
) -> None:
    from coterie.backends.cuda.layer import run_slots

    made = on_device(doors, experts(rng, (5, 64, 64), form, biases=True))
    routing, x = routed(rng, 5, k, 5), on(doors, floats(rng, (5, 64)))
    ids, weights = on(doors, routing.ids.astype(np.int32)), on(doors, routing.weights)
    among = summed(run_slots(x, ids, weights, made, parts, torch.float32, alone=True))
    for row in (0, 4):
        one = slice(row, row + 1)
        alone = run_slots(x[one], ids[one], weights[one], made, parts, torch.float32, alone=True)
        np.testing.assert_array_equal(among[one], summed(alone))


@pytest.mark.parametrize("n_rows", [3, 12])
def test_all_rows_meet_the_matrices_of_a_shared_expert(doors: str, n_rows: int, rng: np.random.Generator) -> None:
    from coterie.backends.cuda.layer import run_dense

    for options in ({}, {"up": "mxfp4", "down": "nvfp4"}):
        made, x = experts(rng, (1, 64, 96), "8 bits", activation="gelu", **options), floats(rng, (n_rows, 64))
        matrices = [on_device(doors, picked(stack, 0)) for stack in (made.gate, made.up, made.down)]
        found = off(run_dense(on(doors, x), *matrices, "gelu", 2))
        routing = Routing(np.zeros((n_rows, 1), np.uint32), np.ones((n_rows, 1), np.float32))
        assert_within(found, moe_reference(x, routing, made), layer_limit(made, "float32", 1))


def picked(stack: Packed, index: int | slice) -> Packed:
    """One of the matrices of a stack, or some."""
    parts = (None if part is None else part[index] for part in (stack.codes, stack.scales, stack.biases))
    return Packed(*parts, stack.bits, stack.group_size, stack.mode)


def test_what_the_limits_are_made_of_is_measured(rng: np.random.Generator) -> None:
    """4 bits of normal weights: numbers from 16 to 31 stand for weights of some 3 steps; other formats add nothing."""
    assert 6 < stretch(weight(rng, (64, 256), FORMS["4 bits"])) < 10
    assert stretch(weight(rng, (64, 256), FORMS["mxfp4"])) == 1
