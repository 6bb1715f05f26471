"""On a GPU: layers of real dimensions beside float64, stacks and routings beyond 31 and 15 bits, CUDA graphs."""

import functools
from typing import Any

import numpy as np
import pytest

import coterie
from coterie import Experts, Packed, Routing
from coterie.formats import Format
from coterie.moe import moe_reference
from coterie.ops import gather_mm_reference
from cuda.weights_made import FORMS, Limit, assert_within, layer_limit, product_limit
from tensors import off
from tolerance import bound

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
REAL = (128, 2816, 704)
"""E, H, I of a mixture of 26 billion weights with 8 experts a token."""


def weight(seed: int, shape: tuple[int, int, int], form: str) -> Any:
    """A stack of random codes with scales for results of the size of what is multiplied; made where it will lie."""
    there = torch.Generator(DEVICE).manual_seed(seed)
    *leading, n_columns = shape
    fmt, size = FORMS[form], n_columns**-0.5
    if not isinstance(fmt, Format):
        dtype = getattr(torch, fmt)
        return torch.randn(shape, generator=there, device=DEVICE, dtype=dtype) * size
    words = (*leading, fmt.words(n_columns))
    codes = torch.randint(-(2**31), 2**31, words, generator=there, device=DEVICE, dtype=torch.int32).view(torch.uint32)
    groups = (*leading, fmt.n_groups(n_columns))
    if fmt.mode != "affine":
        exponents = torch.randint(-3, 1, groups, generator=there, device=DEVICE)
        scales = (exponents + (127 + round(np.log2(size)) if fmt.mode != "nvfp4" else 0)).to(torch.uint8)
        return Packed(codes, scales, None, fmt.bits, fmt.group_size, fmt.mode)
    spread = (2**fmt.bits - 1) / 2
    scales = (0.5 + torch.rand(groups, generator=there, device=DEVICE)) * size / spread
    return Packed(codes, scales.bfloat16(), (scales * -spread).bfloat16(), fmt.bits, fmt.group_size)


@functools.lru_cache(maxsize=1)
def layer(form: str, sizes: tuple[int, int, int] = REAL) -> Experts:
    n, hidden, inner = sizes
    matrices = [weight(seed, shape, form) for seed, shape in enumerate([(n, inner, hidden)] * 2 + [(n, hidden, inner)])]
    return Experts(*matrices, "gelu_tanh")


def routed(n_tokens: int, k: int, n_experts: int) -> Routing:
    there = torch.Generator(DEVICE).manual_seed(n_tokens)
    return coterie.route(torch.randn((n_tokens, n_experts), generator=there, device=DEVICE) * 2, k)


def activations(n_tokens: int, width: int, dtype: str) -> Any:
    there = torch.Generator(DEVICE).manual_seed(n_tokens + 1)
    return torch.randn((n_tokens, width), generator=there, device=DEVICE).to(getattr(torch, dtype))


def some_experts(made: Experts, ids: np.ndarray) -> Experts:
    """Those experts alone, as NumPy arrays."""

    def host(stack: Any) -> Any:
        if not isinstance(stack, Packed):
            return off(torch.stack([stack[index] for index in ids]))
        parts = (stack.codes, stack.scales, stack.biases)
        picked = (None if part is None else np.stack([off(part[index]) for index in ids]) for part in parts)
        return Packed(*picked, stack.bits, stack.group_size, stack.mode)

    return Experts(host(made.gate), host(made.up), host(made.down), made.activation)


def check_rows(found: Any, x: Any, routing: Routing, made: Experts, rows: list[int]) -> None:
    """Some rows beside float64."""
    assert torch.isfinite(found).all()
    ids, weights = off(routing.ids)[rows], off(routing.weights)[rows]
    used, places = np.unique(ids, return_inverse=True)
    few, dtype = some_experts(made, used.tolist()), str(x.dtype).removeprefix("torch.")
    expected = moe_reference(off(x)[rows], Routing(places.reshape(ids.shape), weights), few)
    assert_within(off(found)[rows], expected, layer_limit(few, dtype, ids.shape[1]))


@pytest.mark.parametrize(
    ("form", "dtype", "n_tokens"),
    [
        *[("4 bits", "bfloat16", n_tokens) for n_tokens in (1, 8, 64, 600)],
        ("4 bits", "float32", 1),
        ("4 bits", "float32", 600),
        ("8 bits", "bfloat16", 64),
        ("mxfp4", "bfloat16", 8),
        ("mxfp4", "float16", 600),
        ("bf16", "bfloat16", 1),
        ("bf16", "bfloat16", 600),
    ],
)
def test_a_layer_of_real_dimensions(form: str, dtype: str, n_tokens: int) -> None:
    n_experts, hidden, _ = REAL
    made, x, routing = layer(form), activations(n_tokens, hidden, dtype), routed(n_tokens, 8, n_experts)
    found = coterie.moe(x, routing, made)
    check_rows(found, x, routing, made, sorted({0, n_tokens - 1}))
    assert torch.equal(found, coterie.moe(x, routing, made)), "two runs differ"


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("n_tokens", [4097, 8193])
def test_routed_rows_beyond_15_and_16_bits(n_tokens: int, dtype: str) -> None:
    """Eight rows a token, and one expert that nobody chooses."""
    sizes = (60, 256, 128)
    made, x, routing = layer("4 bits", sizes), activations(n_tokens, 256, dtype), routed(n_tokens, 8, 59)
    routing = Routing(routing.ids, routing.weights)
    check_rows(coterie.moe(x, routing, made), x, routing, made, [0, 4095, 4096, n_tokens - 2, n_tokens - 1])
    crowd = Routing(torch.full_like(routing.ids.view(torch.int32), 59), routing.weights)
    check_rows(coterie.moe(x, crowd, made), x, crowd, made, [0, 4095, 4096, n_tokens - 1])


def test_more_blocks_than_a_launch_has_programs_on_an_axis() -> None:
    """Two million rows, more than 65,535 blocks of 32."""
    n = (65535 + 3) * 32
    made = weight(0, (3, 16, 64), "4 bits")
    x, ids = activations(n, 64, "float32")[:, None], torch.arange(n, device=DEVICE) % 3
    found = coterie.gather_qmm(x, made, rhs_indices=ids)
    rows = [0, n // 2, n - 3, n - 2, n - 1]
    expected = coterie.gather_qmm(x[rows], made, rhs_indices=ids[rows])
    torch.testing.assert_close(found[rows], expected, rtol=0, atol=1e-4)


def test_stacks_beyond_31_bits_are_addressed_at_their_far_end() -> None:
    if torch.cuda.mem_get_info()[0] < 30 << 30:
        pytest.skip("needs 30 GiB of the GPU's memory")
    n, size = 2100, 1024
    plain = torch.zeros((n, size, size), dtype=torch.bfloat16, device=DEVICE)
    plain[-1] = weight(1, (1, size, size), "bf16")[0]
    packed = weight(2, (n, size, size), "8 bits")
    assert min(plain.numel(), packed.codes.nbytes) > 2**31
    last = torch.full((3, 1), n - 1, device=DEVICE)
    routing = Routing(last, torch.ones((3, 1), device=DEVICE))
    for stack in (plain, packed):
        made = Experts(stack, stack, stack)
        for n_tokens in (1, 3):
            x, some = activations(n_tokens, size, "float32"), Routing(last[:n_tokens], routing.weights[:n_tokens])
            check_rows(coterie.moe(x, some, made), x, some, made, list(range(n_tokens)))
    many = torch.full((200,), n - 1, device=DEVICE)
    x = activations(200, size, "float32")[:, None]
    found = off(coterie.gather_mm(x, plain.mT, rhs_indices=many))
    expected = gather_mm_reference(off(x)[:5], off(plain[-1].mT)[None], None, np.zeros(5, int))
    assert_within(found[:5], expected, Limit(bound("float32", size), 2.0**-17))
    assert product_limit(off(plain[-1]), 2).sums == bound("float32", size)


@pytest.mark.parametrize("n_tokens", [1, 8, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_route_and_layer_in_a_graph_give_the_bits_that_they_give_outside(n_tokens: int, dtype: str) -> None:
    sizes = (60, 512, 192)
    made = layer("4 bits", sizes)
    logits, x = torch.zeros((n_tokens, 60), device=DEVICE), torch.zeros_like(activations(n_tokens, 512, dtype))

    def both() -> Any:
        return coterie.moe(x, coterie.route(logits, 6), made)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = both()
    for _ in range(2):
        logits.normal_()
        x.normal_()
        expected = both()
        replayed.zero_()
        graph.replay()
        assert torch.equal(replayed, expected)
        assert expected.abs().sum() > 0
