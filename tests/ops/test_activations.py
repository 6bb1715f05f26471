"""Gated activations against their float64 definitions, and the definitions against PyTorch and transformers."""

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, KINDS, floats, give, ready, take
from coterie.ops import ACTIVATIONS, glu_fused_reference, glu_reference
from coterie.ops.dispatch import numpy_dtype
from tolerance import EPS, assert_close

BOUND = {"float32": 16 * EPS["float32"], "float16": EPS["float16"], "bfloat16": EPS["bfloat16"]}
"""A handful of f32 operations, each off by half a unit; then the rounding of the result."""


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_glu_meets_its_reference(kind: str, dtype: str, activation: str, rng: np.random.Generator) -> None:
    ready(kind, "glu", "glu_fused")
    for shape in ((704,), (3, 2, 33), (1, 16), (5, 8, 96)):
        gate, up = floats(rng, shape, dtype, 3), floats(rng, shape, dtype, 3)
        expected = glu_reference(gate, up, activation)
        found = take(coterie.glu(give(gate, kind), give(up, kind), activation), kind, dtype)
        assert_close(found, expected, BOUND[dtype])
        both = np.concatenate([gate, up], -1)
        found = take(coterie.glu_fused(give(both, kind), activation), kind, dtype)
        np.testing.assert_array_equal(glu_fused_reference(both, activation), expected)
        assert_close(found, expected, BOUND[dtype])


def test_the_references_are_the_functions_of_pytorch_and_transformers() -> None:
    torch = pytest.importorskip("torch")
    gate = torch.from_numpy(np.concatenate([np.linspace(-12, 12, 4001), [-300.0, 300.0]]))
    up = torch.from_numpy(np.random.default_rng(0).standard_normal(4003))
    functional = torch.nn.functional
    known = {
        "silu": functional.silu(gate) * up,
        "gelu": functional.gelu(gate) * up,
        "gelu_tanh": functional.gelu(gate, approximate="tanh") * up,
        "relu": functional.relu(gate) * up,
    }
    for activation, expected in known.items():
        np.testing.assert_allclose(glu_reference(gate, up, activation), expected.numpy(), rtol=1e-12, atol=1e-15)


def test_swiglu_clamped_is_that_of_gpt_oss() -> None:
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    gate, up = (torch.from_numpy(np.random.default_rng(seed).normal(0, 6, (50, 32))) for seed in (1, 2))
    experts = modeling.GptOssExperts.__new__(modeling.GptOssExperts)
    torch.nn.Module.__init__(experts)
    experts.alpha, experts.limit = 1.702, 7.0
    interleaved = torch.stack([gate, up], -1).flatten(-2)
    expected = experts._apply_gate(interleaved).numpy()
    assert (gate.numpy() > 7).any()
    assert (np.abs(up.numpy()) > 7).any()
    np.testing.assert_allclose(glu_reference(gate, up, "swiglu_clamped"), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_activations_saturate_and_never_make_nan(kind: str, dtype: str, activation: str) -> None:
    ready(kind, "glu")
    largest = float({"float32": 3.4e38, "float16": 65504, "bfloat16": 3.38e38}[dtype])
    sizes = np.array([largest, 1e30, 1e20, 1e10, 1e4, 100, 20, 9, 1e-30, 0.0])
    gate = np.concatenate([sizes, -sizes])
    gate = np.clip(gate, -largest, largest).astype(numpy_dtype(dtype))
    ones = np.ones_like(gate)
    found = take(coterie.glu(give(gate, kind), give(ones, kind), activation), kind, dtype).astype(np.float64)
    assert np.isfinite(found).all()
    positive, negative = found[: len(sizes)], found[len(sizes) :]
    if activation == "swiglu_clamped":
        assert positive.max() <= 14 * (1 + EPS[dtype])
    else:
        np.testing.assert_array_equal(positive[:7], gate[:7].astype(np.float64))
    np.testing.assert_allclose(negative[:7], 0, atol=1e-6)
    assert (found[[9, 19]] == 0).all()
