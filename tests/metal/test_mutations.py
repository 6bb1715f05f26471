"""Each kernel broken on purpose, in ways that kernels have been broken before: its check must notice every time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mlx.core")

import coterie
from array_kinds import floats, give, take
from coterie.backends.mlx.metal import launch
from coterie.formats import Format
from coterie.ops.activations import glu_fused_reference, glu_reference
from coterie.ops.combine import accumulate_reference, weighted_sum_reference
from coterie.ops.routing import RouteSpec, gather_topk_weights_reference, route_reference
from layers import check, experts_of, routing_of
from metal.emulator import Emulator, KernelError
from tolerance import assert_close, bound

Rng = np.random.Generator


def glu(rng: Rng) -> None:
    gate, up = floats(rng, (3, 37), scale=2), floats(rng, (3, 37))
    found = take(coterie.glu(give(gate, "mlx"), give(up, "mlx"), "gelu"), "mlx", "float32")
    assert_close(found, glu_reference(gate, up, "gelu"), 2e-6)


def glu_fused(rng: Rng) -> None:
    both = floats(rng, (3, 74), scale=2)
    found = take(coterie.glu_fused(give(both, "mlx"), "gelu_tanh"), "mlx", "float32")
    assert_close(found, glu_fused_reference(both, "gelu_tanh"), 2e-6)


def weighted_sum(rng: Rng) -> None:
    outputs, weights = floats(rng, (3, 9, 37)), np.abs(floats(rng, (3, 9))) + np.float32(0.1)
    outputs[1, 2], weights[1, 2] = np.inf, 5e-11
    found = take(coterie.weighted_sum(give(outputs, "mlx"), give(weights, "mlx")), "mlx", "float32")
    assert_close(found, weighted_sum_reference(outputs, weights), bound("float32", 9))


def accumulate(rng: Rng) -> None:
    start, output = floats(rng, (3, 37)), floats(rng, (3, 37))
    found = take(coterie.accumulate(give(start, "mlx"), give(output, "mlx"), 0.3), "mlx", "float32")
    assert_close(found, accumulate_reference(start, output, 0.3), bound("float32", 2))
    skipped = coterie.accumulate(give(start, "mlx"), give(np.full_like(start, np.nan), "mlx"), 5e-11)
    np.testing.assert_array_equal(take(skipped, "mlx", "float32"), start)


def matvec(rng: Rng) -> None:
    matrix, x = floats(rng, (37, 70)), floats(rng, (70,))
    found = take(coterie.matvec(give(matrix, "mlx"), give(x, "mlx")), "mlx", "float32")
    assert_close(found, matrix.astype(np.float64) @ x, bound("float32", 70))


def gather_topk_weights(rng: Rng) -> None:
    probs, scale = np.abs(floats(rng, (3, 60))), np.abs(floats(rng, (60,)))
    ids = np.argsort(-probs, -1).astype(np.uint32)
    ids[2], probs[2] = np.arange(60), 0
    found = coterie.gather_topk_weights(give(probs, "mlx"), give(ids, "mlx"), give(scale, "mlx"), 33)
    reference = gather_topk_weights_reference(probs, ids, scale, 33)[1]
    assert_close(take(found.weights, "mlx", "float32"), reference, bound("float32", 33))


def route(rng: Rng) -> None:
    """Steps between logits, with ties, through a grouped sigmoid and a scaled softmax."""
    logits = (rng.integers(0, 40, (5, 96)) / 8).astype(np.float32)
    scale = np.abs(floats(rng, (96,)))
    grouped = RouteSpec(8, "sigmoid", True, scale, None, 8, 4, "top2", 2.5)
    for spec in (RouteSpec(33, per_expert_scale=scale), grouped):
        ids, weights = route_reference(logits, spec)
        given = RouteSpec(spec.top_k, spec.scoring, True, give(scale, "mlx"), None, spec.n_groups, spec.top_groups,
                          spec.group_score, spec.scaling_factor)  # fmt: skip
        found = coterie.route(give(logits, "mlx"), given)
        np.testing.assert_array_equal(take(found.ids, "mlx", "uint32"), ids)
        assert_close(take(found.weights, "mlx", "float32"), weights, bound("float32", 96))
    one_is_nan = np.where(np.arange(96) == 70, -np.float32(np.nan), logits[:1])
    unusable = coterie.route(give(one_is_nan, "mlx"), RouteSpec(33, per_expert_scale=give(scale, "mlx")))
    assert np.isnan(take(unusable.weights, "mlx", "float32")).all()


def experts(rng: Rng, fmt: Format, fused: bool) -> None:
    """With biases; one of the experts is infinite and skipped."""
    layer = experts_of(rng, "mlx", 5, 320, 64, fmt, fused=fused, biases=True, activation="swiglu_clamped")
    layer.down_bias[4] = np.inf
    ids, weights = routing_of(rng, 3, 3, 5, empty=4)
    ids[0, 1], weights[0, 1] = 4, 5e-11
    check(floats(rng, (3, 320), scale=2), ids, weights, layer)


def experts_fused(rng: Rng) -> None:
    experts(rng, Format.resolve("affine", 4, 32), True)


def experts_8_bits(rng: Rng) -> None:
    experts(rng, Format.resolve("affine", 8, 64), False)


def experts_mxfp4(rng: Rng) -> None:
    experts(rng, Format.resolve("mxfp4"), False)


PROBES = [
    *(glu, glu_fused, weighted_sum, accumulate, matvec, gather_topk_weights, route),
    *(experts_fused, experts_8_bits, experts_mxfp4),
]

BARRIER = "simdgroup_barrier(mem_flags::mem_threadgroup)"

MUTATIONS: list[tuple[Callable[[Rng], None], str, str, str]] = [
    (glu, "kernels/glu", "min(first + PER_THREAD, columns)", "first + PER_THREAD"),
    (glu, "kernels/glu", "thread_position_in_grid.y", "thread_position_in_grid.x"),
    (glu, "shared/activation", "x < 0.0f ? tail : 1.0f - tail", "tail"),
    (glu_fused, "kernels/glu_fused", "2 * row + column", "row + column"),
    (glu_fused, "kernels/glu_fused", "float(gate_up[gate + columns])", "float(gate_up[gate])"),
    (glu_fused, "shared/activation", "0.044715f", "0.44715f"),
    (weighted_sum, "kernels/weighted_sum", "slot < k", "slot < min(k, 8u)"),
    (weighted_sum, "kernels/weighted_sum", "    if (coterie::skipped(weight)) {\n        continue;\n    }\n", ""),
    (weighted_sum, "shared/skipped", "1e-10f", "1e-11f"),
    (accumulate, "kernels/accumulate", "start + weight * float", "weight * float"),
    (accumulate, "shared/skipped", "<", ">"),
    (matvec, "kernels/matvec", "column += 32", "column += 64"),
    (matvec, "kernels/matvec", "simd_sum(sums[i])", "sums[i]"),
    (matvec, "kernels/matvec", " && first + i < n_rows", ""),
    (gather_topk_weights, "kernels/gather_topk_weights", "total > 0.0f ?", "true ?"),
    (gather_topk_weights, "kernels/gather_topk_weights", "weight *= scale[id]", "weight *= scale[slot]"),
    (gather_topk_weights, "kernels/gather_topk_weights", "slot += 32", "slot += 64"),
    (route, "shared/selection", "simd_min(rank == best", "simd_max(rank == best"),
    (route, "shared/selection", "candidate > rank", "candidate >= rank"),
    (route, "kernels/route", "ranks[id] = 0", "(void)0"),
    (route, "kernels/route", "usable ? weight * scaling_factor : NAN", "weight * scaling_factor"),
    (route, "kernels/route", "lane == id % 32", "lane == 0"),
    (route, "kernels/route", "weight *= scale[id]", "weight *= scale[slot]"),
    (route, "kernels/route", "first + second", "first"),
    (route, "kernels/route", "group_ranks[i / size] != 0", "group_ranks[i / size] == 0"),
    (route, "kernels/route", f"    {BARRIER};\n    for (uint group", "    for (uint group"),
    (experts_fused, "kernels/experts_gate_up", "FUSED ? row + n_rows : row", "row"),
    (experts_8_bits, "kernels/experts_gate_up", "pair / k", "pair % k"),
    (experts_8_bits, "kernels/experts_gate_up", "eight += 32", "eight += 64"),
    (experts_8_bits, "kernels/experts_gate_up", "gate_sum += gate_offset[row]", "up_sum += gate_offset[row]"),
    (experts_8_bits, "kernels/experts_down", "    if (coterie::skipped(weight)) {\n        continue;\n    }\n", ""),
    (experts_8_bits, "kernels/experts_down", "HAS_OFFSET && lane == 0", "HAS_OFFSET"),
    (experts_8_bits, "kernels/experts_down", "expert = ids[pair]", "expert = ids[token]"),
    (experts_8_bits, "shared/quantized", "float(biases[group]) * total", "float(biases[group])"),
    (experts_8_bits, "shared/quantized", "i * BITS % 32", "i * BITS"),
    (experts_mxfp4, "shared/quantized", "code & 8 ?", "code & 4 ?"),
    (experts_mxfp4, "shared/quantized", "exponent << 23", "exponent << 22"),
    (experts_8_bits, "shared/quantized", "eight * 8 / GROUP", "eight / GROUP"),
]  # fmt: skip


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("probe", PROBES)
def test_whole_kernels_pass_their_checks(
    emulator: Emulator, probe: Callable[[Rng], None], flush: bool, rng: Rng
) -> None:
    """Also where subnormal numbers are taken for zero, as they may be on a GPU."""
    emulator.flush = flush
    probe(rng)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "file", "whole", "broken"), MUTATIONS, ids=[f"{row[1]}-{row[3][:24].strip()}" for row in MUTATIONS]
)
def test_a_broken_kernel_is_noticed(
    emulator: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    probe: Callable[[Rng], None],
    file: str,
    whole: str,
    broken: str,
    rng: Rng,
) -> None:
    original: Any = launch.source

    def mutated(path: str) -> str:
        text: str = original(path)
        return text.replace(whole, broken) if path == f"{file}.metal" else text

    assert whole in original(f"{file}.metal")
    monkeypatch.setattr(launch, "source", mutated)
    launch.compiled.cache_clear()
    with pytest.raises((KernelError, AssertionError, pytest.fail.Exception)) as caught:
        probe(rng)
    assert "does not compile" not in str(caught.value)
    assert emulator.launches
