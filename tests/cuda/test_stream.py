"""Products that stream matrices by on Hopper GPUs, beside float64."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats
from coterie import Experts, Routing
from coterie.formats import Format
from coterie.moe import moe_reference
from cuda.test_halves import check_ids, check_not_finite, check_sizes, run, weighed_limit
from cuda.test_halves import experts as made_of
from cuda.weights_made import (
    BY_GROUP,
    ON_GPU,
    PLACE,
    Limit,
    assert_within,
    cut_out,
    fewer,
    layer_limit,
    on_device,
    weight,
)
from layers import routing_of
from tensors import off, on

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

FORMATS = {
    **BY_GROUP,
    "4 bits, groups of 128": Format.resolve("affine", 4, 128),
    "5 bits": Format.resolve("affine", 5, 64),
}
_BY_HAND = ("4 bits", "8 bits, groups of 32", "mxfp4")
EACH = [form if form in _BY_HAND else pytest.param(form, marks=ON_GPU) for form in BY_GROUP]
LARGE = [pytest.param(sizes, marks=ON_GPU) for sizes in ((9, 704, 64), (3, 2816, 192), (4, 2880, 704), (2, 192, 8256))]
_AHEAD = 36
"""The place of that argument of the kernel."""

SHAPES = ((128, 4), (64, 2), (64, 4), (32, 2))


@pytest.fixture(params=[8, 16])
def columns(request: pytest.FixtureRequest) -> int:
    """Rows of a block: with 8 codes are multiplied exactly, with more they become weights first if they are affine."""
    return request.param


@pytest.fixture
def launches(hopper: None, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The rows and warps of a program of each product, which all go this way."""
    from coterie.backends.cuda import stream

    del hopper
    blocks = (stream._Block(columns, 10000, 3 if columns == 8 else 2),)
    monkeypatch.setattr(stream, "_BLOCKS", blocks)
    monkeypatch.setattr(stream, "_fewest", lambda _gate: 0)
    seen: list[tuple[int, int]] = []
    shape = stream._shape

    def counted(*arguments: Any, **options: Any) -> Any:
        seen.append(shape(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(stream, "_shape", counted)
    return seen


def limit_of(made: Experts, top_k: int, columns: int) -> Limit:
    return layer_limit(made, "bfloat16", top_k) if columns == 8 else weighed_limit(made, top_k)


def check(launches: list[Any], columns: int, x: np.ndarray, routing: Routing, made: Experts) -> None:
    launches.clear()
    found = run(x, routing, made)
    assert len(launches) == 2
    assert_within(found, moe_reference(x, routing, made), limit_of(made, routing.ids.shape[1], columns))


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", EACH)
def test_numbers_of_tokens(launches: list[Any], columns: int, form: str, rng: np.random.Generator) -> None:
    """Around a block of columns, with experts that have none and one that has most."""
    n_experts = fewer((20,), (9,))[0]
    made = made_of(rng, (n_experts, 192, 64), form, activation="gelu_tanh")
    for n_tokens in fewer((2, 3, 7, 8, 9, 16, 17, 33, 50), (2, 17)):
        ids, weights = routing_of(rng, n_tokens, 3, n_experts, empty=4)
        if n_tokens > 8:
            ids[: n_tokens // 2, 0], ids[: n_tokens // 2, 1:] = 7, np.where(ids[: n_tokens // 2, 1:] == 7, 6, 8)
        check(launches, columns, floats(rng, (n_tokens, 192), "bfloat16"), Routing(ids, weights), made)


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", EACH)
@pytest.mark.parametrize("shape", SHAPES)
def test_programs_of_each_shape(
    launches: list[Any], columns: int, shape: tuple[int, int], form: str, rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from coterie.backends.cuda import stream

    monkeypatch.setattr(stream, "_SHAPES", ((stream._Shape(*shape), 0), *stream._SHAPES))
    made = made_of(rng, (6, 256, 128), form)
    ids, weights = routing_of(rng, 5, 2, 6)
    check(launches, columns, floats(rng, (5, 256), "bfloat16"), Routing(ids, weights), made)
    assert set(launches) == {shape}


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", EACH)
@pytest.mark.parametrize("sizes", [(3, 64, 64), (3, 448, 320), *LARGE])
def test_widths(
    launches: list[Any], columns: int, form: str, sizes: tuple[int, int, int], rng: np.random.Generator
) -> None:
    """One step, and fewer groups than it has; odd numbers of groups and of steps."""
    made = made_of(rng, sizes, form)
    ids, weights = routing_of(rng, 6, 2, sizes[0])
    check(launches, columns, floats(rng, (6, sizes[1]), "bfloat16"), Routing(ids, weights), made)


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu", "scale_dtype": "float16"},
        {"activation": "gelu", "fused": True},
        {"activation": "swiglu_clamped", "biases": True},
        {"activation": "swiglu_clamped", "biases": True, "fused": True},
        {"down": "8 bits, groups of 32"},
        {"down": "mxfp4", "activation": "gelu_tanh"},
    ],
)
def test_activations_biases_and_formats(launches: list[Any], options: dict[str, Any], rng: np.random.Generator) -> None:
    made = made_of(rng, (9, 192, 64), "4 bits", **options)
    for n_tokens in fewer((4, 12, 23), (4,)):
        ids, weights = routing_of(rng, n_tokens, 3, 9, empty=2)
        check(launches, columns, floats(rng, (n_tokens, 192), "bfloat16"), Routing(ids, weights), made)


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", EACH)
def test_sizes_of_rows_do_not_mix(launches: list[Any], columns: int, form: str, rng: np.random.Generator) -> None:
    check_sizes(made_of(rng, (3, 192, 64), form), form, 20, lambda made: limit_of(made, 1, columns), rng)
    assert len(launches) == 2


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", EACH)
def test_a_row_has_its_bits_in_any_company(launches: list[Any], form: str, rng: np.random.Generator) -> None:
    made = made_of(rng, (4, 192, 64), form)
    ids, weights = routing_of(rng, 15, 2, 4)
    x = floats(rng, (15, 192), "bfloat16")
    whole = run(x, Routing(ids, weights), made)
    for rows in (slice(0, 2), slice(3, 9)):
        np.testing.assert_array_equal(run(x[rows], Routing(ids[rows], weights[rows]), made), whole[rows])
    assert len(launches) == 6


@pytest.mark.usefixtures("doors", "fenced")
def test_what_is_not_finite_stays_with_its_token(launches: list[Any], rng: np.random.Generator) -> None:
    check_not_finite(made_of(rng, (6, 128, 64), "4 bits"), 20, (5, 14), rng)
    assert len(launches) == 4


@pytest.mark.usefixtures("doors", "fenced")
def test_ids_that_are_no_experts_are_left_out(launches: list[Any], columns: int, rng: np.random.Generator) -> None:
    made = made_of(rng, (5, 128, 64), "4 bits")
    check_ids(made, 18, limit_of(made, 2, columns), rng)
    assert len(launches) == 2


@pytest.mark.usefixtures("hopper")
def test_what_goes_this_way(device: str, rng: np.random.Generator) -> None:
    """By the routed rows, whose number depends on the format; not gate and up of two formats, formats without a kernel,
    nor matrices that cannot be copied 16 bytes at a time.
    """
    from coterie.backends.cuda.stacks import stack_of
    from coterie.backends.cuda.stream import tile_for

    def rows_for(n_slots: int, form: str, *, width: int = 4096, up: str = "", down: str = "") -> int:
        """Of a block; 0 if it goes another way."""
        shapes = ((form, (4, 32, width)), (up or form, (4, 32, width)), (down or form, (4, 64, 64)))
        made = [stack_of(on_device(device, weight(rng, shape, FORMATS[name], "bfloat16"))) for name, shape in shapes]
        tile = tile_for(n_slots, *made)
        return 0 if tile is None else tile.rows

    assert [rows_for(n, "4 bits") for n in (7, 8, 24, 25, 64, 65)] == [0, 8, 8, 16, 16, 0]
    assert [rows_for(n, "4 bits", width=2048) for n in (1, 2, 64)] == [0, 8, 16]
    assert [rows_for(n, "4 bits, groups of 32", width=2048) for n in (7, 8)] == [0, 8]
    assert [rows_for(n, "8 bits") for n in (7, 8, 25)] == [0, 8, 16]
    assert [rows_for(n, "mxfp4") for n in (7, 8, 32, 33)] == [0, 8, 8, 0]
    assert rows_for(25, "4 bits", down="mxfp4") == 8
    assert rows_for(8, "4 bits", up="mxfp4") == 0
    assert rows_for(8, "5 bits") == rows_for(8, "4 bits", down="5 bits") == 0
    cut = stack_of(cut_out(device, weight(rng, (4, 64, 64), FORMATS["4 bits"], "bfloat16")))
    whole = stack_of(on_device(device, weight(rng, (4, 32, 4096), FORMATS["4 bits"], "bfloat16")))
    assert tile_for(8, whole, whole, cut) is None


@pytest.mark.usefixtures("doors", "fenced", "launches")
def test_whose_rows_do_not_go_this_way(launches: list[Any], rng: np.random.Generator) -> None:
    """One token's, activations with more digits than bfloat16 has, and those whose hidden values have no bound."""

    def goes(n_tokens: int, made: Any, dtype: str = "bfloat16", **options: Any) -> bool:
        ids, weights = (on(PLACE, part) for part in routing_of(rng, n_tokens, 2, 3))
        launches.clear()
        coterie.moe(on(PLACE, floats(rng, (n_tokens, 64), dtype)), Routing(ids, weights), made, **options)
        return len(launches) > 0

    made = on_device(PLACE, made_of(rng, (3, 64, 32), "4 bits, groups of 32"))
    assert goes(2, made)
    assert not goes(1, made)
    assert not goes(2, made, "float32")
    assert not goes(2, made, precision="exact")
    assert not goes(2, on_device(PLACE, made_of(rng, (3, 64, 32), "4 bits, groups of 32", biases=True)))


@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", [*BY_GROUP, "4 bits, groups of 128"])
def test_words_hold_constants_in_the_order_of_steps(
    device: str, form: str, scale_dtype: str, rng: np.random.Generator
) -> None:
    from coterie.backends.cuda.stacks import stack_of
    from coterie.backends.cuda.stream import is_ready, words_of

    fmt = FORMATS[form]
    packed = weight(rng, (2, 24, 9 * fmt.group_size), fmt, None if fmt.mode == "mxfp4" else scale_dtype)
    stack = stack_of(on_device(device, packed))
    assert not is_ready(stack)
    words, units = words_of(stack)
    assert is_ready(stack)
    assert words_of(stack)[0] is words
    words = off(words)
    in_rows = words.transpose(0, 2, 1, 3).reshape(48, -1)
    if fmt.mode == "mxfp4":
        found = in_rows.view(np.uint8)
        np.testing.assert_array_equal(found[:, :9], packed.scales.reshape(48, 9))
        assert (found[:, 9:] == 0).all()
        assert (off(units) == 2**14).all()
        return
    assert (np.log2(off(units)) % 1 == 0).all()
    for shift, expected, size in ((0, packed.scales, 2.0**-24), (16, packed.biases, 1.0)):
        found = (in_rows >> shift).astype(np.uint16).view(np.float16).astype(np.float64)
        wide = expected.reshape(48, 9).astype(np.float64)
        lost = 2.0**-25 * size * off(units)[:, None]  # what float16 has no digits for
        off_by = np.abs(found[:, :9] * size * off(units)[:, None] - wide)
        assert (off_by <= np.maximum(np.abs(wide) * 2.0**-11, lost)).all()
        assert (found[:, 9:] == 0).all()
        assert (np.abs(found) < 2.0**15).all()
    assert np.abs(found).max() >= 2.0**-8


@pytest.mark.usefixtures("doors")
def test_words_are_not_fetched_early_where_they_are_just_being_made(
    launches: list[Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel that makes them may not have ended when the product begins; the next time it has, and down's are."""
    from coterie.backends.cuda import stream

    early: list[bool] = []
    launch = stream.launch

    def counted(kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None:
        if kernel is stream.gluon.stream_rows_kernel:
            early.append(arguments[_AHEAD])
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(stream, "launch", counted)
    made = on_device(PLACE, made_of(rng, (3, 64, 64), "4 bits"))
    x, (ids, weights) = floats(rng, (4, 64), "bfloat16"), routing_of(rng, 4, 2, 3)
    for _ in range(2):
        coterie.moe(on(PLACE, x), Routing(on(PLACE, ids), on(PLACE, weights)), made)
    assert early == [False, False, False, True]
    assert len(launches) == 4
