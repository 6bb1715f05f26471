"""Products of up to eight columns on Hopper GPUs beside float64."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats
from coterie import Routing
from coterie.formats import Format
from coterie.moe import moe_reference
from coterie.ops import dequantize_reference
from cuda.weights_made import (
    BY_GROUP,
    ON_GPU,
    PLACE,
    assert_within,
    cut_out,
    fewer,
    input_limit,
    layer_limit,
    on_device,
    parts_of,
    product_limit,
    summed,
    weight,
)
from cuda.weights_made import experts as made_of
from layers import routing_of
from tensors import off, on

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

FORMATS = {**BY_GROUP, "4 bits, groups of 128": Format.resolve("affine", 4, 128)}
SERVED = ("4 bits", "8 bits", "mxfp4")
"""Names of `weights_made.FORMS` that go this way."""


LARGE = [pytest.param(sizes, marks=ON_GPU) for sizes in ((9, 704, 64), (9, 192, 704), (3, 2816, 192), (20, 64, 2112))]


@pytest.fixture(params=[1, 2])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tiles of every program, whatever would be chosen."""
    from coterie.backends.cuda import programs

    monkeypatch.setattr(programs, "_tiles", lambda *_arguments, **_options: request.param)
    return request.param


@pytest.fixture
def long_rows(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of more than 64 columns are long for kernels by hand: eight sums of each are added up."""
    from coterie.backends.cuda import programs

    if device != "cuda":
        monkeypatch.setattr(programs, "_OF_WARP", 16)


@pytest.fixture
def launches(hopper: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which kernels were launched."""
    from coterie.backends.cuda import single

    del hopper
    seen: list[str] = []

    def counted(name: str) -> Any:
        kernel = getattr(single, name)

        def run(*arguments: Any, **options: Any) -> Any:
            seen.append(name)
            return kernel(*arguments, **options)

        return run

    for name in ("_launch", "multiply_together"):
        monkeypatch.setattr(single, name, counted(name))
    return seen


def run(x: np.ndarray, routing: Routing, made: Any, **options: Any) -> np.ndarray:
    given = Routing(on(PLACE, routing.ids), on(PLACE, routing.weights))
    return off(coterie.moe(on(PLACE, x), given, on_device(PLACE, made), **options))


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("form", FORMATS)
def test_numbers_of_groups(launches: list[str], form: str, scale_dtype: str, rng: np.random.Generator) -> None:
    """One, powers of two and others, up to the most that there is room for."""
    from coterie.backends.cuda.linear import linears

    fmt = FORMATS[form]
    scale = None if fmt.mode == "mxfp4" else scale_dtype
    for n_groups in (1, 2, 3, 5, 8, 11, 24, 44, 64):
        width = n_groups * fmt.group_size
        if width > 4096:
            continue
        matrix, x = weight(rng, (40, width), fmt, scale), floats(rng, (3, width), "bfloat16")
        launches.clear()
        (found,) = linears(on(PLACE, x), [on_device(PLACE, matrix)], [None], parts=1)
        assert launches == ["multiply_together"]
        expected = x.astype(np.float64) @ dequantize_reference(matrix).astype(np.float64).T
        assert_within(off(found), expected, product_limit(matrix, 1))


@pytest.mark.usefixtures("doors", "fenced", "launches", "tiles")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("form", ["4 bits", "mxfp4"])
def test_numbers_of_rows(form: str, dtype: str, rng: np.random.Generator) -> None:
    """Of the matrix and of activations, which may be two numbers each: around what a program has."""
    from coterie.backends.cuda.linear import linears

    for n_rows in fewer((7, 8, 9, 15, 16, 17, 33, 48), (7, 17, 48)):
        matrix = weight(rng, (n_rows, 192), FORMATS[form])
        exact = dequantize_reference(matrix).astype(np.float64).T
        for n_inputs in (1, 3, 4, 5, 8, 9, 16, 17, 31, 32):
            if n_inputs * parts_of(dtype) > 32:
                continue
            x = floats(rng, (n_inputs, 192), dtype)
            (found,) = linears(on(PLACE, x), [on_device(PLACE, matrix)], [None], parts=parts_of(dtype))
            limit = product_limit(matrix, parts_of(dtype)) + input_limit(dtype)
            assert_within(off(found), x.astype(np.float64) @ exact, limit, may_be_exact=form == "mxfp4")


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("sizes", [(9, 192, 64), (9, 64, 192), *LARGE])
@pytest.mark.parametrize("form", SERVED)
def test_one_token(launches: list[str], form: str, sizes: tuple[int, int, int], rng: np.random.Generator) -> None:
    for options in ({}, {"fused": True, "activation": "gelu_tanh"}, {"biases": True, "activation": "swiglu_clamped"}):
        made = made_of(rng, sizes, form, **options)
        routing = Routing(*routing_of(rng, 1, 3, sizes[0]))
        for dtype, precision in (("bfloat16", "default"), ("bfloat16", "exact"), ("float32", "default")):
            x = floats(rng, (1, sizes[1]), dtype)
            launches.clear()
            found = run(x, routing, made, precision=precision)
            expected = moe_reference(x, routing, made)
            assert_within(found, expected, layer_limit(made, dtype, 3, exact=precision == "exact"))
            assert launches == ["_launch"] * 2


@pytest.mark.usefixtures("doors", "fenced", "launches")
@pytest.mark.parametrize("form", FORMATS)
def test_one_token_in_the_order_of_columns(
    form: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the bits that it has in the order of codes, into which it is brought if it is wider than bfloat16."""
    from coterie.backends.cuda import layer

    brought: list[int] = []
    prepare = layer.prepare

    def counted(*arguments: Any) -> Any:
        brought.append(1)
        return prepare(*arguments)

    monkeypatch.setattr(layer, "prepare", counted)
    width = 3 * FORMATS[form].group_size
    gate, up, down = (
        weight(rng, shape, FORMATS[form]) for shape in ((4, 128, width), (4, 128, width), (4, width, 128))
    )
    experts = on_device(PLACE, coterie.Experts(gate, up, down, "silu"))
    ids, weights = on(PLACE, np.array([[2, 0, 3]], np.int32)), on(PLACE, np.ones((1, 3), np.float32))
    x = on(PLACE, floats(rng, (1, width), "bfloat16"))

    def found(x: Any) -> tuple[np.ndarray, int]:
        brought.clear()
        return off(layer.run_slots(x, ids, weights, experts, 1, torch.float32).values), len(brought)

    as_it_is, n_brought = found(x)
    assert n_brought == 0
    wider, n_brought = found(x.float())
    assert n_brought == 1
    np.testing.assert_array_equal(as_it_is, wider)


@pytest.mark.usefixtures("doors", "fenced", "launches", "long_rows")
@pytest.mark.parametrize("form", FORMATS)
def test_one_token_of_long_rows(form: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the bits that it has in other company, whatever warps and tiles its programs have: few warps with two
    shares each, of one tile or two, or one for each share. Its activations may be in the order of codes or not.
    """
    from coterie.backends.cuda import programs
    from coterie.backends.cuda.layer import run_slots

    size = FORMATS[form].group_size
    (inner,) = fewer(({32: 66, 64: 45, 128: 17}[size] * size,), (9 * size,))
    (hidden,) = fewer((inner,), (3 * size,))
    gate, up, down = (
        weight(rng, (3, *shape), FORMATS[form]) for shape in ((inner, hidden), (inner, hidden), (hidden, inner))
    )
    experts = on_device(PLACE, coterie.Experts(gate, up, down, "silu"))
    ids, weights = on(PLACE, np.array([[2, 0]] * 2, np.int32)), on(PLACE, floats(rng, (2, 2), "float32"))
    x = on(PLACE, floats(rng, (2, hidden), "bfloat16"))
    expected = summed(run_slots(x, ids, weights, experts, 1, torch.float32, alone=True))[:1]
    seen: set[programs.Form] = set()
    choose = programs._of_long_rows

    def noted(*arguments: Any, **options: Any) -> programs.Form:
        form = choose(*arguments, **options)
        seen.add(form)
        return form

    monkeypatch.setattr(programs, "_of_long_rows", noted)
    for few_tiles, room in ((8, 220 << 10), (0, 1 << 20), (0, 0)):
        monkeypatch.setattr(programs, "_FEW_TILES", few_tiles)
        monkeypatch.setattr(programs, "_SHARED_MEMORY", room)
        monkeypatch.setattr(programs, "MULTIPROCESSORS", 132 if few_tiles else 1)
        for given in (x[:1], x[:1].float()):
            found = summed(run_slots(given, ids[:1], weights[:1], experts, 1, torch.float32, alone=True))
            np.testing.assert_array_equal(found, expected)
    assert {(form.warps, form.tiles) for form in seen} == {(8, 1), (4, 1), (4, 2)}
    assert {form.shares for form in seen} == {8}


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("down", ["3 bits", "bf16", "mxfp4"])
def test_down_in_another_format(launches: list[str], down: str, rng: np.random.Generator) -> None:
    """If down goes another way, so do gate and up, because it needs the sums of their hidden values."""
    made = made_of(rng, (5, 192, 128), "4 bits", down=down)
    routing = Routing(*routing_of(rng, 1, 3, 5))
    x = floats(rng, (1, 192), "bfloat16")
    assert_within(run(x, routing, made), moe_reference(x, routing, made), layer_limit(made, "bfloat16", 3))
    assert launches == (["_launch"] * 2 if down in SERVED else [])


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", SERVED)
def test_every_row_has_the_bits_that_it_has_alone(launches: list[str], form: str, rng: np.random.Generator) -> None:
    """Whether slots are sorted or not, and NaN in another row or not."""
    from coterie.backends.cuda.layer import run_dense, run_slots

    (n_rows,) = fewer((40,), (12,))
    made, x = made_of(rng, (4, 192, 128), form), floats(rng, (n_rows, 192), "bfloat16")
    x[7, 3] = np.nan
    ids, weights = routing_of(rng, n_rows, 2, 4)
    experts, given = on_device(PLACE, made), on(PLACE, x)
    sent = on(PLACE, ids.astype(np.int32)), on(PLACE, weights)
    together = summed(run_slots(given, *sent, experts, 1, torch.float32, alone=True))
    matrices = [on_device(PLACE, weight(rng, shape, FORMATS[form])) for shape in ((128, 192), (128, 192), (192, 128))]
    dense = off(run_dense(given, *matrices, "silu", 1, alone=True))
    for row in range(n_rows):
        one = slice(row, row + 1)
        found = run_slots(given[one], sent[0][one], sent[1][one], experts, 1, torch.float32, alone=True)
        np.testing.assert_array_equal(summed(found), together[one])
        np.testing.assert_array_equal(off(run_dense(given[one], *matrices, "silu", 1, alone=True)), dense[one])
    assert set(launches) == {"_launch"}
    assert np.isnan(dense[7]).all()
    assert np.isfinite(np.delete(dense, 7, 0)).all()


@pytest.mark.usefixtures("doors", "fenced")
def test_an_id_that_is_no_expert_is_left_out(launches: list[str], rng: np.random.Generator) -> None:
    from coterie.backends.cuda.layer import run_experts

    made, x = made_of(rng, (3, 128, 64), "4 bits"), floats(rng, (1, 128), "bfloat16")
    ids, weights = np.array([[1, 3, -1, 0, 2**31 - 1]], np.int32), np.ones((1, 5), np.float32)
    arguments = (on(PLACE, ids), on(PLACE, weights), on_device(PLACE, made))
    found = off(run_experts(on(PLACE, x), *arguments, 1, torch.bfloat16))
    kept = Routing(np.array([[1, 0]], np.uint32), np.ones((1, 2), np.float32))
    assert_within(found, moe_reference(x, kept, made), layer_limit(made, "bfloat16", 2))
    assert launches == ["_launch"] * 2


@pytest.mark.usefixtures("doors", "fenced", "tiles")
@pytest.mark.parametrize("form", SERVED)
def test_few_tokens(launches: list[str], form: str, rng: np.random.Generator) -> None:
    """Experts with no row, with one, with more than a block has, and with all; slots of tiny weights."""
    made = made_of(rng, fewer((9, 192, 320), (9, 192, 64)), form, biases=True, activation="gelu_tanh")
    cases = ("bfloat16", 2, 1), ("bfloat16", 5, 2), ("bfloat16", 7, 3), ("bfloat16", 11, 2), ("float32", 5, 2)
    for dtype, n_tokens, top_k in fewer(cases, cases[-2:]):
        ids, weights = routing_of(rng, n_tokens, top_k, 9)
        weights[0, 0] = 1e-12
        for chosen in (ids, np.where(ids == ids[0, 0], ids, (ids[0, 0] + 1) % 9).astype(ids.dtype)):
            routing, x = Routing(chosen, weights), floats(rng, (n_tokens, 192), dtype)
            launches.clear()
            found = run(x, routing, made)
            assert_within(found, moe_reference(x, routing, made), layer_limit(made, dtype, top_k))
            assert launches == ["_launch"] * 2


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", SERVED)
@pytest.mark.parametrize("inner", [384, pytest.param(8256, marks=ON_GPU), pytest.param(14336, marks=ON_GPU)])
def test_long_rows_go_in_pieces(
    launches: list[str], form: str, inner: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda import programs

    if inner == 384:
        monkeypatch.setattr(programs, "_MOST_COLUMNS", {4: 256, 8: 256})
        monkeypatch.setattr(programs, "_PIECE", 128)
    made = made_of(rng, (5, 64, inner), form, biases=True, activation="silu")
    for n_tokens in (1, 3):
        routing = Routing(*routing_of(rng, n_tokens, 2, 5))
        for dtype in ("bfloat16", "float32"):
            x = floats(rng, (n_tokens, 64), dtype)
            launches.clear()
            assert_within(run(x, routing, made), moe_reference(x, routing, made), layer_limit(made, dtype, 2))
            assert launches == ["_launch"] * 2


@pytest.mark.parametrize(
    ("form", "shape", "n_blocks", "gated", "one", "expected"),
    [
        ("4 bits", (704, 2816), 8, True, True, (8, 8, 1, 64)),
        ("8 bits", (704, 2816), 8, True, True, (8, 8, 1, 80)),
        ("4 bits", (704, 2816), 8, True, False, (8, 8, 2, 128)),
        ("4 bits", (2880, 2880), 4, True, True, (8, 4, 1, 128)),
        ("4 bits", (2880, 2880), 4, False, True, (8, 4, 2, 128)),
        ("4 bits", (14336, 4096), 2, True, True, (8, 4, 1, 128)),
        ("4 bits", (4096, 14336), 2, False, True, (8, 4, 1, 128)),
        ("4 bits", (768, 2048), 8, True, True, (4, 4, 2, 128)),
        ("4 bits", (2048, 768), 8, False, True, (2, 2, 1, 128)),
        ("mxfp4", (2048, 7168), 8, True, True, (8, 8, 1, 128)),  # 56 groups of four warps are too many to compile
    ],
)
def test_what_programs_have(
    device: str, form: str, shape: tuple[int, int], n_blocks: int, gated: bool, one: bool, expected: tuple[int, ...],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Mostly of layers that were measured: shares, warps, tiles, registers."""
    from coterie.backends.cuda.programs import form_of_experts
    from coterie.backends.cuda.stacks import stack_of

    stack = stack_of(on_device(device, weight(rng, (1, 1, shape[1]), FORMATS[form])))
    n_tiles = shape[0] // (8 if gated else 16)
    assert form_of_experts(stack, n_tiles, n_blocks, gated=gated, one=one) == expected


def test_other_forms_are_not_served(device: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda import gluon, single
    from coterie.backends.cuda.stacks import stack_of
    from coterie.backends.cuda.tiles import dense_tile, few_tile

    monkeypatch.setattr(gluon, "serves", lambda _device: True)

    def served(form: Format, width: int, parts: int = 1, *, in_pieces: bool = False) -> bool:
        stack = stack_of(on_device(device, weight(rng, (8, width), form)))
        whole, last = (None, stack) if in_pieces else (stack, None)
        return single.served(few_tile(parts), parts, whole, last=last).single

    assert all(served(form, 128) for form in FORMATS.values())
    assert served(FORMATS["4 bits"], 8192)
    assert not served(FORMATS["4 bits"], 8256)
    assert served(FORMATS["4 bits"], 8256, in_pieces=True)
    assert not served(FORMATS["4 bits"], 8384, in_pieces=True), "131 groups have no equal pieces"
    assert not served(FORMATS["4 bits"], 65536, in_pieces=True), "more pieces than there may be"
    assert served(FORMATS["4 bits"], 128, parts=4)
    assert not served(Format.resolve("affine", 8, 128), 128)
    assert not served(Format.resolve("affine", 3, 64), 128)
    assert not served(Format.resolve("nvfp4"), 128)
    stack = stack_of(on_device(device, weight(rng, (8, 128), FORMATS["4 bits"])))
    plain = stack_of(on(device, floats(rng, (8, 128), "bfloat16")))
    assert not single.served(few_tile(1), 1, stack, plain).single
    assert not single.served(dense_tile(stack, 20, 1), 1, stack).single
    cut = stack_of(cut_out(device, weight(rng, (8, 128), FORMATS["4 bits"])))
    assert not single.served(few_tile(1), 1, cut).single


@pytest.mark.parametrize(
    ("form", "n_columns", "most"),
    [("4 bits", 128, 384), ("4 bits", 2112, 160), ("mxfp4", 128, 160), ("8 bits", 2112, 384)],
)
def test_routed_rows_are_few_beside_the_experts(
    device: str, form: str, n_columns: int, most: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda import gluon, single
    from coterie.backends.cuda.stacks import stack_of

    monkeypatch.setattr(gluon, "serves", lambda _device: True)
    stack = stack_of(on_device(device, weight(rng, (64, 8, n_columns), FORMATS[form])))
    assert single.are_few(most, 1, stack, None, stack)
    assert not single.are_few(most + 1, 1, stack, None, stack)
    assert not single.are_few(most // 2 + 1, 2, stack, None, stack)


def test_columns_that_meet_a_matrix_together(
    device: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda import gluon, single
    from coterie.backends.cuda.stacks import stack_of

    monkeypatch.setattr(gluon, "serves", lambda _device: True)
    sizes = ((720, 128), (8, 8256), (160, 128))
    stack, wide, small = (stack_of(on_device(device, weight(rng, size, FORMATS["4 bits"]))) for size in sizes)
    assert single.are_shared(32, 1, stack, stack)
    assert single.are_shared(16, 2, stack)
    assert not single.are_shared(33, 1, stack)
    assert not single.are_shared(17, 2, stack)
    assert not single.are_shared(32, 1, stack, wide)
    # Thirteen blocks of eight columns, of ten tiles each, have a multiprocessor each.
    assert single.are_shared(104, 1, small)
    assert not single.are_shared(105, 1, small)
    assert not single.are_shared(53, 2, small)
