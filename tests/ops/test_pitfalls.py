"""What went wrong before in kernels like these: one test each, on every kind of array."""

import sys

import numpy as np
import pytest

import coterie
from array_kinds import KINDS, floats, give, pack, ready, take
from coterie import Experts, Packed, Routing
from coterie.arrays import as_numpy
from coterie.backends import available, get
from coterie.errors import ArgumentError
from coterie.formats import Format, codec
from coterie.moe import moe_reference
from coterie.ops import dispatch, quantized_matmul_reference
from layers import FOUR_BITS, check, check_default, experts_of, routing_of, run
from tolerance import assert_close, bound, split


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    ready(request.param, "moe", "quantized_matmul", "gather_qmm", "glu", "route", "gather_topk_weights", "group")
    return str(request.param)


def test_scales_are_read_in_their_own_dtype(kind: str, rng) -> None:
    """bf16 scales read as f16 are other numbers: each dtype gives its own product, f32 sums included."""
    w, x = floats(rng, (24, 128), scale=0.01), floats(rng, (3, 128))
    for dtype in ("bfloat16", "float16"):
        packed = pack(w, FOUR_BITS, kind, dtype)
        found = take(coterie.quantized_matmul(give(x, kind), packed), kind, "float32")
        assert_close(found, quantized_matmul_reference(x, packed), bound("float32", 128))
        assert np.abs(found - x @ w.T).max() < 0.1


def test_bits_are_those_of_each_matrix(kind: str, rng) -> None:
    """The same words mean other weights at other bits and groups; 4 bits, group 64 and 8 bits, group 32 have equal
    shapes.
    """
    words = rng.integers(0, 2**32, (16, 32), dtype=np.uint32)
    scales, biases = floats(rng, (16, 4)), floats(rng, (16, 4))
    for bits, group in ((4, 64), (8, 32)):
        packed = Packed(*(give(part, kind) for part in (words, scales, biases)), bits=bits, group_size=group)
        x = floats(rng, (2, packed.shape[-1]))
        found = take(coterie.quantized_matmul(give(x, kind), packed), kind, "float32")
        assert_close(found, quantized_matmul_reference(x, packed), bound("float32", packed.shape[-1]))


@pytest.mark.parametrize("bits", [3, 5, 6])
def test_rows_of_codes_that_straddle_words_start_where_they_should(kind: str, bits: int) -> None:
    fmt = Format.resolve("affine", bits, 32)
    w = np.zeros((7, 96), np.float32)
    w[np.arange(7), np.arange(7) * 13] = 1.0
    packed = pack(w, fmt, kind)
    assert packed.codes.shape[-1] == 96 * bits // 32
    found = take(coterie.quantized_matmul(give(np.eye(96, dtype=np.float32), kind), packed), kind, "float32")
    np.testing.assert_allclose(found, w.T, atol=1e-6)


def test_f16_activations_do_not_overflow_between_input_and_output(kind: str) -> None:
    """Hidden values of 1e6 are beyond f16; the result is not."""
    n_tokens, ones = 2, np.ones((1, 32, 64), np.float32)
    parts = [give(part, kind) for part in (ones * 40, ones * 40, np.ones((1, 64, 32), np.float32) * 1e-6)]
    experts = Experts(*parts, "relu")
    x = np.ones((n_tokens, 64), np.float16)
    found = run(x, np.zeros((n_tokens, 1), np.uint32), np.ones((n_tokens, 1), np.float32), experts)
    np.testing.assert_allclose(found.astype(float), 2560 * 2560 * 32e-6, rtol=1e-3)


def test_tanh_of_a_large_argument_is_one(kind: str) -> None:
    gate = np.array([3.4e38, 1e13, 50.0, -50.0, -1e13, -3.4e38], np.float32)
    found = take(coterie.glu(give(gate, kind), give(np.ones(6, np.float32), kind), "gelu_tanh"), kind, "float32")
    np.testing.assert_array_equal(found, [*gate[:3], 0, 0, 0])


def test_scale_is_applied_after_renormalising_and_never_before(kind: str) -> None:
    probs, scale = np.array([0.5, 0.3, 0.2], np.float32), np.array([2, 1, 0.5], np.float32)
    given = [give(part, kind) for part in (probs, np.arange(3, dtype=np.uint32), scale)]
    weights = as_numpy(coterie.gather_topk_weights(*given, 3).weights)
    np.testing.assert_allclose(weights, [1.0, 0.3, 0.1], rtol=1e-6)
    assert abs(weights[0] - 0.714) > 0.2


@pytest.mark.parametrize("n_tokens", [4095, 4096, 4097])
def test_rows_around_32768_are_not_lost(kind: str, n_tokens: int, rng) -> None:
    """At top-8, token 4,096 has the first row whose index does not fit in a signed 16-bit number."""
    experts = experts_of(rng, kind, 3, 32, 32)
    ids = np.tile(np.array([0, 1, 2, 0, 1, 2, 0, 1], np.uint32), (n_tokens, 1))
    check(floats(rng, (n_tokens, 32)), ids, np.ones((n_tokens, 8), np.float32), experts)
    groups = coterie.group(give(ids, kind), 3)
    order, offsets = as_numpy(groups.order), as_numpy(groups.offsets)
    assert sorted(order.tolist()) == list(range(8 * n_tokens))
    assert offsets.tolist() == [0, 3 * n_tokens, 6 * n_tokens, 8 * n_tokens]


@pytest.mark.parametrize("n_experts", [40, 60, 96])
def test_the_number_of_experts_need_not_be_a_power_of_two(kind: str, n_experts: int) -> None:
    logits = np.arange(n_experts, dtype=np.float32)[None]
    routing = coterie.route(give(logits, kind), 9)
    assert as_numpy(routing.ids).tolist() == [list(range(n_experts - 1, n_experts - 10, -1))]


def test_more_than_eight_experts_a_token(kind: str, rng) -> None:
    experts = experts_of(rng, kind, 40, 32, 32)
    for k in (9, 17, 33):
        check(floats(rng, (3, 32)), *routing_of(rng, 3, k, 40), experts)
        probs = np.abs(floats(rng, (40,)))
        order = np.argsort(-probs).astype(np.uint32)
        weights = as_numpy(coterie.gather_topk_weights(give(probs, kind), give(order, kind), None, k).weights)
        np.testing.assert_allclose(weights, probs[order[:k]] / probs[order[:k]].sum(), rtol=1e-6)


def test_padding_of_a_sort_never_becomes_an_expert(kind: str) -> None:
    """Logits of -inf, as padding to a power of two has them, give ids below E, and weight zero where they must be
    chosen.
    """
    logits = np.full((1, 60), -np.inf, np.float32)
    logits[0, [59, 3]] = 1.0, 2.0
    routing = coterie.route(give(logits, kind), 8)
    ids, weights = as_numpy(routing.ids), as_numpy(routing.weights)
    assert ids[0, :2].tolist() == [3, 59]
    assert len(set(ids[0])) == 8
    assert ids.max() < 60
    assert (weights[0, 2:] == 0).all()
    padded_ids = np.array([3, 59, 63, 62, 61, 60], np.uint32)
    with pytest.raises(ArgumentError, match="id 63"):
        coterie.gather_topk_weights(give(np.ones(60, np.float32), kind), give(padded_ids, kind), None, 4)


def test_an_id_twice_within_one_token_counts_twice(kind: str, rng) -> None:
    experts = experts_of(rng, kind, 4, 32, 32)
    for n_tokens in (1, 40):
        ids = np.tile(np.array([2, 2, 1], np.uint32), (n_tokens, 1))
        check(floats(rng, (n_tokens, 32)), ids, rng.random((n_tokens, 3)).astype(np.float32), experts)


def test_ids_out_of_range_are_refused_at_every_door(kind: str, rng) -> None:
    experts, bad = experts_of(rng, kind, 4, 32, 32), give(np.array([[4]], np.uint32), kind)
    one, x = give(np.ones((1, 1), np.float32), kind), give(floats(rng, (1, 1, 32)), kind)
    calls = (
        lambda: coterie.moe(x[0], Routing(bad, one), experts),
        lambda: coterie.group(bad, 4),
        lambda: coterie.gather_qmm(x, experts.gate, rhs_indices=bad),
        lambda: coterie.gather_mm(x, give(np.ones((4, 32, 8), np.float32), kind), None, bad),
        lambda: coterie.gather_topk_weights(give(np.ones((1, 4), np.float32), kind), bad, None, 1),
    )
    for call in calls:
        with pytest.raises(ArgumentError, match="has id 4, expected ids from 0 to 3"):
            call()


@pytest.mark.parametrize("width", [704, 2112, 2816])
def test_widths_of_64_or_256_but_not_of_512(kind: str, width: int, rng) -> None:
    """The last weights of a row count: they are the only ones that are not zero."""
    w, x = np.zeros((17, width), np.float32), np.ones((2, width), np.float32)
    w[:, -64:] = 1 + np.abs(floats(rng, (17, 64)))
    packed = pack(w, Format.resolve("affine", 8, 64), kind)
    found = take(coterie.quantized_matmul(give(x, kind), packed), kind, "float32")
    assert_close(found, quantized_matmul_reference(x, packed), bound("float32", width))
    assert found.min() > 64


def test_slices_that_do_not_start_at_zero(kind: str, rng) -> None:
    whole = [pack(floats(rng, shape), FOUR_BITS, kind) for shape in ((6, 32, 64), (6, 32, 64), (6, 64, 32))]
    slices = [
        Packed(*(part[2:5] for part in (packed.codes, packed.scales, packed.biases)), bits=4, group_size=32)
        for packed in whole
    ]
    x, (ids, weights) = floats(rng, (9, 64)), routing_of(rng, 5, 2, 3)
    routing = Routing(give(ids, kind), give(weights, kind))
    expected = moe_reference(x[4:], Routing(ids + np.uint32(2), weights), Experts(*whole))
    for precision, check_it in (("exact", assert_close), ("default", check_default)):
        found = coterie.moe(give(x, kind)[4:], routing, Experts(*slices), precision)
        check_it(take(found, kind, "float32"), expected, bound("float32", 64, 32, 2) + split(kind, 4))


def test_nothing_is_left_unwritten_where_a_group_is_empty(kind: str, rng) -> None:
    """Every token is answered, whichever experts have no rows; tokens whose slots are all skipped are zero."""
    experts = experts_of(rng, kind, 40, 32, 32)
    poisoned = np.full((64, 32), np.nan, np.float32)
    run(poisoned, np.zeros((64, 2), np.uint32), np.ones((64, 2), np.float32), experts)
    ids = np.where(np.arange(64)[:, None] % 2, [[0, 39]], [[17, 18]]).astype(np.uint32)
    weights = np.ones((64, 2), np.float32)
    weights[5] = 0
    found = check(floats(rng, (64, 32)), ids, weights, experts)
    np.testing.assert_array_equal(found[5], 0)


def test_which_path_runs_is_known_and_none_is_taken_in_silence(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays choose the back end, and a back end that is not there is an error: no slower one steps in."""
    name = {"mlx": "mlx", "cuda": "cuda"}.get(kind, "cpu")
    assert available()[name] is None
    assert get(name).__name__ == f"coterie.backends.{name}"
    ones = give(np.ones((2, 8), np.float32), kind)
    monkeypatch.setattr(dispatch, "_MODULES", {})
    monkeypatch.setitem(sys.modules, f"coterie.backends.{name}", None)
    with pytest.raises(coterie.CoterieError, match=f"the {name} back end cannot be imported"):
        coterie.glu(ones, ones)


def test_all_of_a_constant_group_is_exact(kind: str) -> None:
    """A group of one value has no range: its scale is tiny, and its codes must still not overflow."""
    for value in (0.0, 3.0, -3.0, 1e-9):
        w = np.full((1, 64), value, np.float32)
        found = as_numpy(coterie.dequantize(*coterie.quantize(give(w, kind))))
        np.testing.assert_array_equal(found, codec.dequantize(*codec.quantize(w, Format.resolve()), Format.resolve()))
        np.testing.assert_allclose(found, value, atol=1e-7)
