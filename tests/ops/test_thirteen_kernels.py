"""The thirteen MoE kernels that this library descends from, each under the call that replaces it (docs/kernels.md).

Expected values are written out with Python's own floats, apart from the library's references.
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

import coterie
from array_kinds import KINDS, floats, give, ready, take
from tolerance import EPS, assert_close, bound

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"
BOUND = {"float32": 16 * EPS["float32"], "bfloat16": EPS["bfloat16"]}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    ready(request.param, "glu", "glu_fused", "accumulate", "weighted_sum", "matvec", "gather_topk_weights")
    return str(request.param)


def geglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """gelu_tanh(gate) * up, number by number."""

    def one(g: float, u: float) -> float:
        return 0.5 * g * (1 + math.tanh(0.7978845608028654 * (g + 0.044715 * g**3))) * u

    values = [one(float(g), float(u)) for g, u in zip(gate.reshape(-1), up.reshape(-1), strict=True)]
    return np.array(values).reshape(gate.shape)


def check_glu(kind: str, dtype: str, rng: np.random.Generator) -> None:
    gate, up = floats(rng, (704,), dtype, 2), floats(rng, (704,), dtype)
    found = take(coterie.glu(give(gate, kind), give(up, kind), "gelu_tanh"), kind, dtype)
    assert_close(found, geglu(gate, up), BOUND[dtype])


def check_glu_fused(kind: str, dtype: str, lead: tuple[int, ...], rng: np.random.Generator) -> None:
    both = floats(rng, (*lead, 2 * 96), dtype, 2)
    found = take(coterie.glu_fused(give(both, kind), "gelu_tanh"), kind, dtype)
    assert found.shape == (*lead, 96)
    assert_close(found, geglu(both[..., :96], both[..., 96:]), BOUND[dtype])


def test_fused_gelu_mul(kind: str, rng) -> None:
    check_glu(kind, "float32", rng)


def test_fused_gelu_mul_bf16(kind: str, rng) -> None:
    check_glu(kind, "bfloat16", rng)


def test_moe_swiglu_fused(kind: str, rng) -> None:
    check_glu_fused(kind, "float32", (), rng)


def test_moe_swiglu_batch(kind: str, rng) -> None:
    check_glu_fused(kind, "float32", (8,), rng)


def test_moe_swiglu_seq(kind: str, rng) -> None:
    check_glu_fused(kind, "float32", (13, 8), rng)


def test_moe_swiglu_seq_bf16(kind: str, rng) -> None:
    check_glu_fused(kind, "bfloat16", (13, 8), rng)


def test_zero_buffer(kind: str, rng) -> None:
    """An accumulator that starts from zeros holds exactly the first addition."""
    outputs = floats(rng, (2816,))
    found = coterie.accumulate(give(np.zeros(2816, np.float32), kind), give(outputs, kind), 1.0)
    np.testing.assert_array_equal(take(found, kind, "float32"), outputs)


def test_moe_accumulate(kind: str, rng) -> None:
    outputs, weights = floats(rng, (8, 704)), [0.3, 0.25, 0.2, 0.1, 0.05, 0.05, 0.03, 0.02]
    accumulator = give(np.zeros(704, np.float32), kind)
    for output, weight in zip(outputs, weights, strict=True):
        accumulator = coterie.accumulate(accumulator, give(output, kind), weight)
    expected = sum(weight * output.astype(np.float64) for weight, output in zip(weights, outputs, strict=True))
    assert_close(take(accumulator, kind, "float32"), expected, bound("float32", 8))


def check_weighted_sum(kind: str, dtype: str, lead: tuple[int, ...], rng: np.random.Generator) -> None:
    outputs, weights = floats(rng, (*lead, 8, 704), dtype), np.abs(floats(rng, (*lead, 8)))
    found = take(coterie.weighted_sum(give(outputs, kind), give(weights, kind)), kind, "float32")
    expected = sum(weights[..., slot, None] * outputs[..., slot, :].astype(np.float64) for slot in range(8))
    assert_close(found, expected, bound("float32", 8))


def test_moe_weighted_sum(kind: str, rng) -> None:
    check_weighted_sum(kind, "float32", (), rng)


def test_moe_weighted_sum_seq(kind: str, rng) -> None:
    check_weighted_sum(kind, "float32", (13,), rng)


def test_moe_weighted_sum_seq_bf16_input(kind: str, rng) -> None:
    check_weighted_sum(kind, "bfloat16", (13,), rng)


def test_naive_matvec_f32(kind: str, rng) -> None:
    weight, x = floats(rng, (40, 704)), floats(rng, (704,))
    found = take(coterie.matvec(give(weight, kind), give(x, kind)), kind, "float32")
    expected = [math.fsum(float(w) * float(v) for w, v in zip(row, x, strict=True)) for row in weight]
    assert_close(found, np.array(expected), bound("float32", 704))


def test_moe_gather_topk_weights(kind: str, rng) -> None:
    probs, scale = np.abs(floats(rng, (60,))), np.abs(floats(rng, (60,)))
    order = np.argsort(-probs).astype(np.uint32)
    routing = coterie.gather_topk_weights(give(probs, kind), give(order, kind), give(scale, kind), 17)
    total = math.fsum(float(probs[expert]) for expert in order[:17])
    expected = [float(probs[expert]) / total * float(scale[expert]) for expert in order[:17]]
    assert take(routing.ids, kind, "uint32").tolist() == order[:17].tolist()
    assert_close(take(routing.weights, kind, "float32"), np.array(expected), 32 * EPS["float32"])


def test_every_kernel_has_a_row_in_the_documentation_and_a_test_here() -> None:
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)))
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert len(named) == 13
    assert set(named) <= tests
