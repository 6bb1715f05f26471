"""On a GPU: the glue of a layer captured in a CUDA graph, runs that repeat, and tensors beyond 2^31 elements."""

import numpy as np
import pytest

import coterie
from array_kinds import floats
from coterie.ops import glu_reference, group_reference, route_reference, weighted_sum_reference
from coterie.ops.routing import RouteSpec
from tensors import off, on
from tolerance import EPS, assert_close, bound

pytestmark = pytest.mark.cuda


def test_a_captured_layer_replays_on_new_numbers(rng) -> None:
    torch = pytest.importorskip("torch")
    n_tokens, n_experts, hidden, k = 33, 60, 704, 8
    logits, gate, up = (
        torch.empty(shape, device="cuda") for shape in ((n_tokens, n_experts), *[(n_tokens, k, hidden)] * 2)
    )

    def layer() -> tuple:
        routing = coterie.route(logits, k)
        groups = coterie.group(routing, n_experts)
        taken = coterie.group(routing.ids, n_experts)
        return routing, groups, taken, coterie.weighted_sum(coterie.glu(gate, up, "gelu_tanh"), routing.weights)

    def fill() -> list[np.ndarray]:
        numbers = [floats(rng, tuple(part.shape)) for part in (logits, gate, up)]
        for part, values in zip((logits, gate, up), numbers, strict=True):
            part.copy_(on("cuda", values))
        return numbers

    fill()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        layer()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        routing, groups, taken, total = layer()
    for _ in range(2):
        numbers = fill()
        graph.replay()
        ids, weights = route_reference(numbers[0], RouteSpec(k))
        np.testing.assert_array_equal(off(routing.ids), ids)
        assert_close(off(routing.weights), weights, 32 * EPS["float32"])
        for found in (groups, taken):
            for part, expected in zip(
                (found.order, found.offsets, found.inverse), group_reference(ids, n_experts), strict=True
            ):
                np.testing.assert_array_equal(off(part), expected)
        expected = weighted_sum_reference(glu_reference(numbers[1], numbers[2], "gelu_tanh"), weights)
        assert_close(off(total), expected, bound("float32", k) + 48 * EPS["float32"])


def test_runs_repeat_to_the_bit(rng) -> None:
    logits, outputs = on("cuda", floats(rng, (4096, 128))), on("cuda", floats(rng, (4096, 8, 512), "bfloat16"))

    def run() -> list[np.ndarray]:
        routing = coterie.route(logits, 8)
        groups = coterie.group(routing, 128)
        total = coterie.weighted_sum(outputs, routing.weights)
        return [off(part) for part in (routing.ids, routing.weights, groups.order, groups.inverse, total)]

    for first, second in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_more_than_two_to_the_31_elements_are_addressed() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of the GPU's memory")
    n_rows, width = (1 << 20) + 3, 2052
    gate = torch.full((n_rows, width), -1.0, dtype=torch.bfloat16, device="cuda")
    gate[-1] = 2.0
    out = coterie.glu(gate, gate, "relu")
    assert (out[-1].unique().tolist(), out[:-1].abs().max().item()) == ([4.0], 0.0)
    total = coterie.weighted_sum(gate[:, None], torch.ones((n_rows, 1), device="cuda"))
    assert (total[-1].unique().tolist(), total[-2].unique().tolist()) == ([2.0], [-1.0])
