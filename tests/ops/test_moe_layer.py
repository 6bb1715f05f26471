"""The experts layer against its float64 reference, and the reference against transformers' own experts."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, FORMATS, KINDS, floats, give, ready, take
from coterie import Experts, Packed, Routing
from coterie.arrays import as_numpy
from coterie.errors import ArgumentError
from coterie.formats import Format
from coterie.moe import moe_reference
from coterie.ops import ACTIVATIONS
from layers import FOUR_BITS, check, check_default, experts_of, routing_of, run
from tolerance import assert_close, bound


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format(kind: str, fmt: Format, rng) -> None:
    ready(kind, "moe")
    experts = experts_of(rng, kind, 5, 128, 256, fmt)
    for n_tokens in (1, 19):
        check(floats(rng, (n_tokens, 128)), *routing_of(rng, n_tokens, 2, 5, empty=3), experts)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_plain_arrays_and_every_dtype_of_activations(kind: str, weight_dtype: str, dtype: str, rng) -> None:
    ready(kind, "moe")
    experts = experts_of(rng, kind, 4, 96, 40, weight_dtype)
    check(floats(rng, (7, 96), dtype), *routing_of(rng, 7, 2, 4), experts)
    packed = experts_of(rng, kind, 4, 96, 64)
    check(floats(rng, (7, 96), dtype), *routing_of(rng, 7, 2, 4), packed)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_activations_biases_and_fused_projections(kind: str, activation: str, biases: bool, fused: bool, rng) -> None:
    ready(kind, "moe")
    for fmt in (FOUR_BITS, "bfloat16"):
        experts = experts_of(rng, kind, 6, 64, 96, fmt, fused=fused, biases=biases, activation=activation)
        for n_tokens in (1, 33):
            check(floats(rng, (n_tokens, 64)), *routing_of(rng, n_tokens, 3, 6), experts)


@pytest.mark.parametrize("n_experts", [40, 60, 96])
@pytest.mark.parametrize("k", [1, 2, 8, 17])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_that_are_no_power_of_two_and_any_k(kind: str, k: int, n_experts: int, rng) -> None:
    ready(kind, "moe")
    experts = experts_of(rng, kind, n_experts, 64, 32)
    for n_tokens in (1, 5, 70):
        check(floats(rng, (n_tokens, 64)), *routing_of(rng, n_tokens, k, n_experts, empty=7), experts)


@pytest.mark.parametrize(("hidden", "inner"), [(2816, 704), (704, 2112), (2112, 2816)])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_are_no_multiple_of_512(kind: str, hidden: int, inner: int, rng) -> None:
    ready(kind, "moe")
    experts = experts_of(rng, kind, 2, hidden, inner, Format.resolve("affine", 4, 64), activation="gelu_tanh")
    for n_tokens in (1, 6):
        check(floats(rng, (n_tokens, hidden)), *routing_of(rng, n_tokens, 2, 2), experts)


@pytest.mark.parametrize(("kind", "n_tokens"), [("numpy", 5000), ("torch", 5000), ("mlx", 5000), ("numpy", 8200)])
def test_forty_thousand_routed_rows(kind: str, n_tokens: int, rng) -> None:
    """Past 32,768 and 65,536 rows, where 16-bit indices wrap: every row is compared."""
    ready(kind, "moe")
    experts = experts_of(rng, kind, 60, 64, 32)
    check(floats(rng, (n_tokens, 64)), *routing_of(rng, n_tokens, 8, 60, empty=59), experts)


@pytest.mark.parametrize("n_tokens", [1, 7, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_all_rows_to_one_expert(kind: str, n_tokens: int, rng) -> None:
    ready(kind, "moe")
    experts = experts_of(rng, kind, 40, 64, 96)
    for expert in (0, 39):
        ids = np.full((n_tokens, 1), expert, np.uint32)
        check(floats(rng, (n_tokens, 64)), ids, np.ones((n_tokens, 1), np.float32), experts)


@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (2, 3, 64), (1, 1, 1, 64), (64,)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_any_leading_axes_and_no_tokens(kind: str, shape: tuple[int, ...], rng) -> None:
    ready(kind, "moe")
    experts = experts_of(rng, kind, 5, 64, 32)
    x = floats(rng, shape)
    ids = rng.integers(0, 5, (*shape[:-1], 2)).astype(np.uint32)
    found = check(x, ids, np.ones(ids.shape, np.float32), experts)
    assert found.shape == shape


@pytest.mark.parametrize("kind", KINDS)
def test_formats_may_differ_between_projections(kind: str, rng) -> None:
    ready(kind, "moe")
    for down in (Format.resolve("affine", 6, 64), Format.resolve("mxfp8"), "float32"):
        experts = experts_of(rng, kind, 4, 128, 64, Format.resolve("mxfp4"), down_fmt=down)
        check(floats(rng, (9, 128)), *routing_of(rng, 9, 2, 4), experts)


@pytest.mark.parametrize("kind", KINDS)
def test_routing_made_by_route_is_used_as_it_is(kind: str, rng) -> None:
    ready(kind, "moe", "route")
    experts = experts_of(rng, kind, 60, 64, 32)
    x, logits = floats(rng, (30, 64)), floats(rng, (30, 60))
    routing = coterie.route(give(logits, kind), 8)
    found = take(coterie.moe(give(x, kind), routing, experts, "exact"), kind, "float32")
    assert_close(found, moe_reference(x, routing, experts), bound("float32", 64, 32, 8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_skipped_expert_with_poisoned_weights_reaches_nothing(kind: str, poison: float, rng) -> None:
    ready(kind, "moe")
    codes = experts_of(rng, kind, 4, 64, 32)
    scales = as_numpy(codes.down.scales).copy()
    scales[2] = poison
    down = Packed(codes.down.codes, give(scales, kind), codes.down.biases, bits=4, group_size=32)
    experts = Experts(codes.gate, codes.up, down)
    for n_tokens in (1, 50):
        ids, weights = np.tile(np.array([0, 2, 3], np.uint32), (n_tokens, 1)), np.ones((n_tokens, 3), np.float32)
        weights[:, 1] = 9e-11
        found = run(floats(rng, (n_tokens, 64)), ids, weights, experts)
        assert np.isfinite(found).all()
        weights[:, 1] = 1
        found = run(floats(rng, (n_tokens, 64)), ids, weights, experts)
        assert not np.isfinite(found).any()


def test_the_reference_is_the_layer_of_transformers(rng) -> None:
    """Mixtral's experts (fused gate and up), and gpt-oss's: interleaved, clamped, with biases."""
    torch = pytest.importorskip("torch")
    from transformers import GptOssConfig, MixtralConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    x = torch.from_numpy(rng.standard_normal((11, 48)))
    ids = torch.from_numpy(rng.integers(0, 6, (11, 3)))
    weights = torch.from_numpy(rng.random((11, 3)))
    sizes = {"hidden_size": 48, "intermediate_size": 32, "num_local_experts": 6, "num_experts_per_tok": 3}

    def randomised(module: Any) -> Any:
        for parameter in module.parameters():
            parameter.data = torch.from_numpy(rng.standard_normal(tuple(parameter.shape)) * 0.3)
        return module.double()

    def same(layer: Any, experts: Experts) -> None:
        with torch.no_grad():
            expected = layer(x, ids, weights).numpy()
        found = moe_reference(x, Routing(ids, weights), experts)
        # The record's biases are f32, and so the comparison ends there.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())

    layer = randomised(MixtralExperts(MixtralConfig(**sizes)))
    gate_up, down = layer.gate_up_proj.data.float(), layer.down_proj.data.float()
    same(layer, Experts(gate_up, None, down, "silu"))
    layer = randomised(GptOssExperts(GptOssConfig(**sizes)))
    gate_up, bias = layer.gate_up_proj.data.float().mT, layer.gate_up_proj_bias.data.float()
    parts = {"gate_bias": bias[:, ::2], "up_bias": bias[:, 1::2], "down_bias": layer.down_proj_bias.data.float()}
    same(
        layer,
        Experts(gate_up[:, ::2], gate_up[:, 1::2], layer.down_proj.data.float().mT, "swiglu_clamped", **parts),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_strided_and_offset_experts_and_tokens(kind: str, rng) -> None:
    ready(kind, "moe")
    whole = experts_of(rng, kind, 9, 64, 96, biases=True)

    def every_second(projection: Packed) -> Packed:
        parts = [part[1::2] for part in (projection.codes, projection.scales, projection.biases)]
        return Packed(*parts, bits=4, group_size=32)

    biases = {name: getattr(whole, name)[1::2] for name in ("gate_bias", "up_bias", "down_bias")}
    experts = Experts(*(every_second(part) for part in (whole.gate, whole.up, whole.down)), **biases)
    x = floats(rng, (12, 128))
    ids, weights = routing_of(rng, 12, 2, 4)
    views = Routing(give(ids, kind)[1::2], give(weights, kind)[1::2])
    odd = Routing(ids[1::2] * 2 + 1, weights[1::2])
    reference, limit = moe_reference(x[1::2, 1::2], odd, whole), bound("float32", 64, 96, 2)
    for precision, check_it in (("exact", assert_close), ("default", check_default)):
        found = take(coterie.moe(give(x, kind)[1::2, 1::2], views, experts, precision), kind, "float32")
        check_it(found, reference, limit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [5, 2**32 - 1, -1])
def test_ids_out_of_range_are_refused(kind: str, bad: int, rng) -> None:
    ready(kind)
    experts = experts_of(rng, kind, 5, 64, 32)
    ids = np.zeros((6, 2), np.int64 if bad < 0 else np.uint32)
    ids[5, 1] = bad
    with pytest.raises(ArgumentError, match=f"id {bad}, expected ids from 0 to 4"):
        run(floats(rng, (6, 64)), ids, np.ones((6, 2), np.float32), experts)
    known_for_more = Routing(give(np.full((6, 2), 9, np.uint32), kind), give(np.ones((6, 2), np.float32), kind), 10)
    with pytest.raises(ArgumentError, match="id 9"):
        coterie.moe(give(floats(rng, (6, 64)), kind), known_for_more, experts)


def test_experts_that_do_not_fit_together_are_refused_by_name(rng) -> None:
    good = experts_of(rng, "numpy", 5, 64, 32)
    other = experts_of(rng, "numpy", 4, 64, 64, fused=True)
    bias = np.zeros((5, 32), np.float32)
    refusals = {
        r"gate must be \[5, 32, 64\], found \[4, 128, 64\]": lambda: Experts(other.gate, good.up, good.down),
        r"gate must be \[5, 64, 64\] \(gate and up rows in one\)": lambda: Experts(good.gate, None, good.down),
        r"up must be \[5, 32, 64\]": lambda: Experts(good.gate, other.gate, good.down),
        "activation 'geglu'": lambda: Experts(good.gate, good.up, good.down, "geglu"),
        "up_bias was given without up": lambda: Experts(other.gate, None, other.down, up_bias=bias),
        r"gate_bias is \[5, 31\]": lambda: Experts(good.gate, good.up, good.down, gate_bias=bias[:, :31]),
        r"down_bias is \[5, 32\], expected \[5, 64\]": lambda: Experts(good.gate, good.up, good.down, down_bias=bias),
        "up_bias is int64": lambda: Experts(good.gate, good.up, good.down, up_bias=bias.astype(np.int64)),
        r"gate is \[32, 64\], expected \[E, rows, columns\]": lambda: Experts(
            np.ones((32, 64), np.float32), good.up, good.down
        ),
        "down is float64": lambda: Experts(good.gate, good.up, np.ones((5, 64, 32))),
    }
    for message, make in refusals.items():
        with pytest.raises(ArgumentError, match=message):
            make()


def test_calls_that_do_not_fit_the_experts_are_refused_by_name(rng) -> None:
    experts = experts_of(rng, "numpy", 5, 64, 32)
    x, ids, weights = floats(rng, (6, 64)), np.zeros((6, 2), np.uint32), np.ones((6, 2), np.float32)
    with pytest.raises(ArgumentError, match=r"expected \[..., 64\]"):
        run(x[:, :32], ids, weights, experts)
    with pytest.raises(ArgumentError, match=r"twice \[..., k\]"):
        run(x, ids[:5], weights[:5], experts)
    with pytest.raises(ArgumentError, match=r"twice \[..., k\]"):
        run(x, ids, weights[:, :1], experts)
    with pytest.raises(ArgumentError, match="x is float64"):
        run(x.astype(np.float64), ids, weights, experts)
    with pytest.raises(ArgumentError, match="weights is int32"):
        run(x, ids, weights.astype(np.int32), experts)
    torch = pytest.importorskip("torch")
    with pytest.raises(ArgumentError, match="x is torch"):
        coterie.moe(torch.from_numpy(x), Routing(ids, weights), experts)
