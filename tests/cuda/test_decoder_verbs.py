"""Norms, rotation, embeddings and products by head of a decoder on a GPU, beside float64 and beside the CPU."""

from typing import Any

import numpy as np
import pytest

from coterie.formats import Format, Packed, codec
from coterie.models import launches
from coterie.models.rope import rotation_table
from models.plain_backend import PlainBackend
from tolerance import assert_close, bound

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

PLAIN = PlainBackend()
EPS = 1e-5
FORMATS = [
    ("affine", 4, 64),
    ("affine", 3, 32),
    ("affine", 8, 64),
    ("mxfp4", 4, 32),
    ("mxfp8", 8, 32),
    ("nvfp4", 4, 16),
]


def on_device(array: np.ndarray | None, device: str) -> Any:
    return None if array is None else torch.from_numpy(array).to(device)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", [1, 31, 128, 1025])
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(rng: np.random.Generator, device: str, size: int, weighted: bool) -> None:
    from coterie.backends.cuda.decoder.elementwise import rms_norm

    x, weight = normal(rng, 3, 2, size + 3), normal(rng, size) if weighted else None
    x[1] = 0
    found = rms_norm(on_device(x, device)[..., 2 : 2 + size], on_device(weight, device), EPS)
    expected = PLAIN.rms_norm(x[..., 2 : 2 + size].astype(np.float64), weight, EPS)
    assert_close(found.cpu().numpy(), expected, bound("float32", size), may_be_exact=size == 1)


@pytest.mark.parametrize("n_befores", [0, 1, 3])
@pytest.mark.parametrize(
    "fields", ["", "after", "scalar", "second", "first norm second", "first norm second norm after scalar"]
)
def test_branches_join_the_residual_stream(rng: np.random.Generator, device: str, fields: str, n_befores: int) -> None:
    from coterie.backends.cuda.decoder import verbs

    size = 96
    h, first, second = (normal(rng, 4, size) for _ in range(3))
    norms = [normal(rng, size) for _ in range(7)]
    branches = [(first, norms[0] if "first norm" in fields else None)]
    if "second" in fields:
        branches.append((second, norms[1] if "second norm" in fields else None))
    after, scalar = norms[2] if "after" in fields else None, norms[3][:1] if "scalar" in fields else None
    befores = norms[4 : 4 + n_befores]

    def add(backend: Any, as_own: Any) -> Any:
        own = [(as_own(y), as_own(norm)) for y, norm in branches]
        return launches.add_norms(
            backend, as_own(h), own, as_own(after), as_own(scalar), [as_own(w) for w in befores], EPS
        )

    found, normed = add(verbs(), lambda x: on_device(x, device))
    exact, exactly_normed = add(PLAIN, lambda x: None if x is None else x.astype(np.float64))
    for ours, theirs in zip((found, *(x.wide for x in normed)), (exact, *exactly_normed), strict=True):
        assert_close(ours.cpu().numpy(), theirs, bound("float32", size, size, size))
    assert len(normed) == n_befores


def test_rows_that_come_in_the_order_of_codes_give_the_bits_of_those_that_are_brought_into_it(
    rng: np.random.Generator, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda import products
    from coterie.backends.cuda.decoder import verbs
    from coterie.backends.cuda.decoder.weights import adopt

    backend, size = verbs(), 192
    stored = {}
    for bits in (4, 8):
        packed = codec.quantize(normal(rng, 24, size), Format.resolve("affine", bits, 64))
        stored[f"{bits}"] = Packed(*packed, bits=bits, group_size=64)  # type: ignore[arg-type]
    four, eight = adopt(stored, torch.device(device)).values()
    h, y, norm = (on_device(normal(rng, *shape), device) for shape in ((3, size), (3, size), (size,)))

    def run() -> list[np.ndarray]:
        _, (x,) = backend.add_norms(h, [(y, None)], None, None, [norm], EPS)
        found = [*backend.linears(x, (four, eight), (None, None)), backend.linear(x, four, exact=True)]
        return [product.cpu().numpy() for product in found]

    def nobody(*_: Any) -> Any:
        raise AssertionError("rows that were wished for had to be arranged")

    first = run()
    monkeypatch.setattr(products, "_prepare", nobody)
    for before, after in zip(first, run(), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("bits", [(4, 4), (4, 8)])
@pytest.mark.parametrize("n_rows", [1, 11])
def test_a_dense_layer(rng: np.random.Generator, device: str, n_rows: int, bits: tuple[int, int]) -> None:
    from coterie.backends.cuda.decoder import verbs
    from coterie.backends.cuda.decoder.weights import adopt

    stored = {}
    for name, n, shape in zip("gud", (*bits, 4), ((64, 128), (64, 128), (32, 64)), strict=True):
        packed = codec.quantize(normal(rng, *shape) * shape[1] ** -0.5, Format.resolve("affine", n, 64))
        stored[name] = Packed(*packed, bits=n, group_size=64)  # type: ignore[arg-type]
    there, x = adopt(stored, torch.device(device)), normal(rng, n_rows, 128)
    exact = launches.mlp(PLAIN, x.astype(np.float64), *stored.values(), "silu")  # type: ignore[arg-type]
    for backend in (verbs("exact"), verbs("exact").row_by_row):
        found = backend.mlp(on_device(x, device), *there.values(), "silu")
        # Two parts of bf16 keep 16 bits of an activation, before either matrix.
        assert_close(found.cpu().numpy(), exact, bound("float32", 128, 64) + 2 * 2.0**-16)
        alone = backend.mlp(on_device(x[:1], device), *there.values(), "silu")
    assert np.array_equal(alone.cpu().numpy(), found[:1].cpu().numpy())


@pytest.mark.parametrize("top_k", [1, 3])
def test_outputs_of_experts_are_weighed_and_summed_where_they_join(
    rng: np.random.Generator, device: str, top_k: int
) -> None:
    from coterie.backends.cuda.decoder import verbs
    from coterie.backends.cuda.layer import SlotOutputs

    n_rows, size = 4, 96
    h, dense = normal(rng, n_rows, size), normal(rng, n_rows, size)
    values, weights = normal(rng, n_rows * top_k, size), normal(rng, n_rows, top_k)
    ids = rng.integers(0, 5, n_rows * top_k).astype(np.int32)
    weights[1, 0], values[top_k] = 1e-12, np.nan
    ids[0], values[0] = 7, np.inf
    used = (ids < 5).reshape(weights.shape) & (np.abs(weights) >= 1e-10)
    exact = np.where(
        used[..., None], weights[..., None] * np.nan_to_num(values, posinf=0).reshape(n_rows, top_k, size), 0
    )
    slots = SlotOutputs(*(on_device(array, device) for array in (values, ids, weights)), 5)  # type: ignore[arg-type]
    for other in ([], [(on_device(dense, device), None)]):
        found, _ = verbs().add_norms(on_device(h, device), [(slots, None), *other], None, None, [], EPS)
        expected = h.astype(np.float64) + exact.sum(1) + (dense if other else 0)
        assert_close(found.cpu().numpy(), expected, bound("float32", top_k + 2))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("heads", "size", "pairs"), [(1, 16, 8), (9, 20, 4), (3, 6, 3)])
def test_rotary(rng: np.random.Generator, device: str, heads: int, size: int, pairs: int, interleaved: bool) -> None:
    from coterie.backends.cuda.decoder.elementwise import rotary

    x, angles = normal(rng, 3, heads, size + 2), rng.standard_normal((3, pairs))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    found = rotary(on_device(x, device)[..., 1:-1], on_device(cos, device), on_device(sin, device), interleaved)
    expected = PLAIN.rotary(x[..., 1:-1].astype(np.float64), cos, sin, interleaved)
    assert_close(found.cpu().numpy(), expected, bound("float32", 2))


def test_angles_are_those_of_the_host(device: str) -> None:
    from coterie.backends.cuda.decoder.rows import rotation_table as on_gpu

    frequencies = (1e6 ** -(np.arange(24) / 24)).astype(np.float32)
    positions = np.array([0, 1, 7, 1000, 131_071, 1_000_003])
    found = on_gpu(torch.from_numpy(positions).to(device), torch.from_numpy(frequencies).to(device), 1.25)
    for ours, theirs in zip(found, rotation_table(frequencies, positions, 1.25), strict=True):
        assert np.abs(ours.cpu().numpy() - theirs).max() <= 1.25 * 2**-24


@pytest.mark.parametrize(("mode", "bits", "group_size"), FORMATS)
def test_rows_of_an_embedding(rng: np.random.Generator, device: str, mode: str, bits: int, group_size: int) -> None:
    from coterie.backends.cpu.decoder import verbs as on_cpu
    from coterie.backends.cuda.decoder.weights import adopt, embed

    fmt = Format.resolve(mode, bits, group_size)
    codes, scales, *biases = codec.quantize(normal(rng, 9, 1152), fmt)
    packed = Packed(codes, scales, *(biases or [None]), bits=bits, group_size=group_size, mode=mode)
    ids = [8, 0, 3, 3]
    expected = on_cpu("exact").embed(packed, ids, 2.5)
    there = adopt({"": packed}, torch.device(device))[""]
    found = embed(there, torch.tensor(ids, device=device), 2.5)
    assert np.array_equal(found.cpu().numpy(), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_of_a_plain_embedding(rng: np.random.Generator, device: str, dtype: str) -> None:
    from coterie.backends.cuda.decoder.weights import embed

    table = torch.from_numpy(normal(rng, 5, 40)).to(device, getattr(torch, dtype))
    found = embed(table, torch.tensor([4, 4, 1], device=device))
    assert torch.equal(found, table[[4, 4, 1]].float())


@pytest.mark.parametrize(("rows", "n", "k"), [(1, 5, 3), (17, 33, 70)])
def test_products_by_head(rng: np.random.Generator, device: str, rows: int, n: int, k: int) -> None:
    from coterie.backends.cuda.decoder.latent import by_head

    x, weights = normal(rng, rows, 3, k), normal(rng, 3, n, k)
    found = by_head(on_device(x, device), on_device(weights, device)).cpu().numpy()
    assert_close(found, np.einsum("thk,hnk->thn", x.astype(np.float64), weights), bound("float32", k))
    alone = by_head(on_device(x[:1], device), on_device(weights, device)).cpu().numpy()
    assert np.array_equal(alone, found[:1])


def test_weights_that_do_not_fit_are_refused_before_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda.decoder import weights
    from coterie.errors import CapacityError

    monkeypatch.setattr(weights, "free_memory", lambda _device: 3.0 * 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device=None: (0, 8 << 30))
    weights._check_room(torch.device("cuda"), int(2.4 * 2**30))
    with pytest.raises(CapacityError, match=r"take 2\.6 GiB, and 3\.0 of the GPU's 8\.0 GiB are free") as refused:
        weights._check_room(torch.device("cuda"), int(2.6 * 2**30))
    assert refused.value.code == "gpu_memory"
