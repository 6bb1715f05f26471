"""Float16 products on Hopper GPUs beside float64, and what stands before them, which any GPU can run."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats, pack
from coterie import Experts, Packed, Routing
from coterie.formats import Format
from coterie.moe import moe_reference
from coterie.ops import dequantize_reference
from cuda.weights_made import (
    BY_GROUP,
    ON_GPU,
    ONE_PART,
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
from tolerance import bound, errors

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

ALL = {**BY_GROUP, "bf16": "bfloat16"}
_BY_HAND = ("4 bits", "8 bits, groups of 32", "bf16")
EACH = [form if form in _BY_HAND else pytest.param(form, marks=ON_GPU) for form in ALL]
EACH_PACKED = [form for form in BY_GROUP if form != "4 bits"]
WIDE = [pytest.param(sizes, marks=ON_GPU) for sizes in ((2, 4160, 192), (2, 192, 8256))]

WEIGHT_LIMIT = Limit(0, 2.0**-12)
"""What a weight loses that becomes a float16 number, in root mean square."""


def experts(
    rng: np.random.Generator, sizes: tuple[int, int, int], form: str, *, fused: bool = False, biases: bool = False,
    activation: str = "silu", scale_dtype: str = "bfloat16", down: str | None = None,
) -> Experts:  # fmt: skip
    n, hidden, inner = sizes
    rows = 2 * inner if fused else inner
    lengths = {"gate_bias": rows, "up_bias": 0 if fused else rows, "down_bias": hidden}
    return Experts(
        weight(rng, (n, rows, hidden), ALL[form], scale_dtype),
        None if fused else weight(rng, (n, rows, hidden), ALL[form], scale_dtype),
        weight(rng, (n, hidden, inner), ALL[down or form], scale_dtype),
        activation,
        **{name: floats(rng, (n, length)) for name, length in lengths.items() if biases and length},
    )


@pytest.fixture
def launches(hopper: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What float16 products were launched with, to which few rows go, too."""
    from coterie.backends.cuda import halves, single, stream

    del hopper
    seen: list[Any] = []
    launch = halves._launch

    def counted(*arguments: Any, **options: Any) -> None:
        seen.append(arguments)
        launch(*arguments, **options)

    monkeypatch.setattr(halves, "_launch", counted)
    monkeypatch.setattr(stream, "tile_for", lambda *_arguments: None)
    monkeypatch.setattr(single, "are_few", lambda *_arguments: False)
    monkeypatch.setattr(single, "are_shared", lambda *_arguments: False)
    return seen


def run(x: np.ndarray, routing: Routing, made: Experts) -> np.ndarray:
    given = Routing(on(PLACE, routing.ids), on(PLACE, routing.weights))
    return off(coterie.moe(on(PLACE, x), given, on_device(PLACE, made)))


def check(launches: list[Any], x: np.ndarray, routing: Routing, made: Experts) -> None:
    launches.clear()
    found = run(x, routing, made)
    assert len(launches) == 2
    assert_within(found, moe_reference(x, routing, made), weighed_limit(made, routing.ids.shape[1]))


def arranged(places: np.ndarray, group: int, per_unit: int) -> np.ndarray:
    """Which activations stand at places in the order of codes."""
    n_units = group // per_unit
    return places // group * group + places % n_units * per_unit + places % group // n_units


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("form", BY_GROUP)
def test_rows_become_float16_near_its_largest(
    device: str, form: str, dtype: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the launch that stands before products, and where rows are too long for it; a sixteenth of those that meet
    numbers which are 16 times their codes.
    """
    from coterie.backends.cuda import halves
    from coterie.backends.cuda.products import prepare
    from coterie.backends.cuda.stacks import stack_of
    from coterie.backends.cuda.tiles import halves_tile, stream_tile

    stack = stack_of(on_device(device, weight(rng, (2, 4, 320), BY_GROUP[form], "bfloat16")))
    x = floats(rng, (6, 320), dtype) * np.array([[1.0], [3e30], [1e-30], [0.0], [1.0], [7.0]]).astype(np.float32)
    x = x.astype(np.float32 if dtype == "float32" else floats(rng, (1,), dtype).dtype)
    x[4, 17] = np.inf
    streams = prepare(on(device, x), stack, 1, stream_tile(8, 3))
    monkeypatch.setattr(halves, "MOST_COLUMNS", 64)
    long_streams = prepare(on(device, x), stack, 1, stream_tile(8, 3))
    rows = prepare(on(device, x), stack, 1, halves_tile(16, 16))
    places = np.arange(320)
    for found in (streams, long_streams):
        ordered = arranged(places, stack.group // 4, stack.per_unit)
        lifted = np.where(ordered % 2 == 1, 16.0, 1.0) if form.startswith("4 bits") else np.ones(320)
        in_order, again = np.empty((2, 6, 320), np.float32)
        in_order[:, ordered] = off(found.values)[0].astype(np.float32) * lifted
        again[:, arranged(places, stack.group, stack.per_unit)] = off(rows.values)[0]
        np.testing.assert_allclose(in_order, again, rtol=0, atol=2.0**-21)
        np.testing.assert_allclose(off(found.sizes), off(rows.sizes), rtol=bound("float32", 320))
    values, sizes = off(rows.values)[0].astype(np.float64), off(rows.sizes).astype(np.float64)
    wide = x.astype(np.float64)[:, arranged(places, stack.group, stack.per_unit)]
    ordinary = [0, 1, 2, 5]
    largest = np.abs(values[ordinary]).max(1)
    assert (largest >= 2**14).all()
    assert (largest <= 2**15).all()
    assert (np.log2(sizes[:, 0]) % 1 == 0).all()
    off_by = np.abs(values[ordinary] * sizes[ordinary, :1] - wide[ordinary])
    assert (off_by <= np.maximum(np.abs(wide[ordinary]) * 2.0**-11, sizes[ordinary, :1] * 2.0**-25)).all()
    np.testing.assert_allclose(sizes[ordinary, 1], np.abs(wide[ordinary]).sum(1), rtol=bound("float32", 320))
    assert (values[3] == 0).all()
    assert np.isinf(values[4]).sum() == 1


@pytest.mark.parametrize("scale_dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", BY_GROUP)
def test_no_weight_is_larger_than_the_largest(
    device: str, form: str, scale_dtype: str, rng: np.random.Generator
) -> None:
    from coterie.backends.cuda.halves import largest_of
    from coterie.backends.cuda.stacks import stack_of

    w = floats(rng, (5, 40, 192)) * np.array([1e-3, 1.0, 0.0, 40.0, 1.0], np.float32)[:, None, None]
    packed = pack(w, BY_GROUP[form], "numpy", scale_dtype)
    stack = stack_of(on_device(device, packed))
    if packed.biases is not None:
        wide = (part.astype(np.float32) for part in (packed.scales, packed.biases))
        packed = Packed(packed.codes, *wide, packed.bits, packed.group_size, packed.mode)
    found, most = off(largest_of(stack)), np.abs(dequantize_reference(packed)).max((1, 2))
    assert (found >= most * (1 - 2.0**-20)).all()
    assert (found <= 2 * most)[[0, 1, 3, 4]].all()
    assert largest_of(stack) is largest_of(stack)


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", EACH)
@pytest.mark.parametrize("n_experts", [pytest.param(1, marks=ON_GPU), 2, pytest.param(32, marks=ON_GPU)])
def test_numbers_of_rows_around_tiles(launches: list[Any], form: str, n_experts: int, rng: np.random.Generator) -> None:
    made = experts(rng, (n_experts, 192, 128), form, activation="gelu_tanh")
    for n_tokens in fewer((9, 16, 17, 31, 33, 64, 65, 127, 129, 300), (9, 129)):
        ids, weights = routing_of(rng, n_tokens, 1, n_experts)
        check(launches, floats(rng, (n_tokens, 192), "bfloat16"), Routing(ids, weights), made)


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", EACH)
@pytest.mark.parametrize("sizes", [(3, 64, 64), (3, 704, 320), *WIDE])
def test_widths(launches: list[Any], form: str, sizes: tuple[int, int, int], rng: np.random.Generator) -> None:
    """One step; odd numbers of them; more groups than have room at a time, in either product."""
    made = experts(rng, sizes, form)
    for n_tokens in fewer((20, 150), (20,)):
        ids, weights = routing_of(rng, n_tokens, 2, sizes[0])
        check(launches, floats(rng, (n_tokens, sizes[1]), "bfloat16"), Routing(ids, weights), made)


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", ["4 bits", *(pytest.param(form, marks=ON_GPU) for form in EACH_PACKED)])
@pytest.mark.parametrize("inner", [256, pytest.param(8448, marks=ON_GPU), pytest.param(14336, marks=ON_GPU)])
def test_long_rows_of_few_programs_go_in_pieces(
    launches: list[Any], form: str, inner: int, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda import halves

    if inner == 256:
        monkeypatch.setattr(halves, "_LONG", 64)
    pieces: list[int] = []
    add = halves.add_pieces

    def counted(sums: Any, out: Any) -> None:
        pieces.append(len(sums))
        add(sums, out)

    monkeypatch.setattr(halves, "add_pieces", counted)
    made = experts(rng, (3, 192, inner), form)
    for n_tokens in fewer((20, 90, 300), (20,)):
        ids, weights = routing_of(rng, n_tokens, 2, 3, empty=1)
        pieces.clear()
        check(launches, floats(rng, (n_tokens, 192), "bfloat16"), Routing(ids, weights), made)
        assert pieces == [4]


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", ["4 bits", "bf16"])
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
def test_activations_biases_and_formats(
    launches: list[Any], options: dict[str, Any], form: str, rng: np.random.Generator
) -> None:
    if form == "bf16":
        options = {name: value for name, value in options.items() if name != "down"}
    made = experts(rng, (5, 192, 128), form, **options)
    for n_tokens in fewer((12, 90, 700), (90,)):
        ids, weights = routing_of(rng, n_tokens, 3, 5, empty=2)
        check(launches, floats(rng, (n_tokens, 192), "bfloat16"), Routing(ids, weights), made)


@pytest.mark.usefixtures("doors", "fenced")
def test_one_token_of_many_experts(launches: list[Any], rng: np.random.Generator) -> None:
    made = experts(rng, (20, 192, 64), "4 bits")
    ids, weights = routing_of(rng, 1, 12, 20)
    check(launches, floats(rng, (1, 192), "bfloat16"), Routing(ids, weights), made)


def check_sizes(
    made: Experts, form: str, n_tokens: int, limit: Callable[[Experts], Limit], rng: np.random.Generator
) -> None:
    """Tokens, and rows of matrices, 10^12 times as large as others: each comes out as exact as it would alone."""
    n_experts, size, _ = made.down.shape
    sizes = 4.0 ** rng.integers(-10, 10, (n_experts, size)).astype(np.float32)
    down = np.asarray(dequantize_reference(made.down), np.float32) * sizes[..., None]
    made = Experts(made.gate, made.up, pack(down, BY_GROUP[form], "numpy", "bfloat16"), "silu")
    tokens = 4.0 ** rng.integers(-10, 10, (n_tokens, 1)).astype(np.float32)
    x = (floats(rng, (n_tokens, size)) * tokens).astype(floats(rng, (1,), "bfloat16").dtype)
    routing = Routing(*routing_of(rng, n_tokens, 1, n_experts))
    found, expected = run(x, routing, made).astype(np.float64), moe_reference(x, routing, made).astype(np.float64)
    by_row = sizes[routing.ids[:, 0]]
    assert_within(found / by_row / tokens, expected / by_row / tokens, limit(made))


def check_not_finite(made: Experts, n_tokens: int, strange: tuple[int, int], rng: np.random.Generator) -> None:
    """What is not finite stays with its token."""
    x = floats(rng, (n_tokens, 128), "bfloat16")
    ids, weights = routing_of(rng, n_tokens, 2, made.n_experts)
    clean = run(x, Routing(ids, weights), made)
    x[strange[0], 3], x[strange[1], 100] = np.nan, np.inf
    found = run(x, Routing(ids, weights), made)
    others = np.setdiff1d(np.arange(n_tokens), strange)
    np.testing.assert_array_equal(found[others], clean[others])
    assert not np.isfinite(found[list(strange)].astype(np.float32)).any()


def check_ids(made: Experts, n_tokens: int, limit: Limit, rng: np.random.Generator) -> None:
    """Ids that are no experts' are left out."""
    from coterie.backends.cuda.layer import run_experts

    x = floats(rng, (n_tokens, 128), "bfloat16")
    ids, weights = routing_of(rng, n_tokens, 2, made.n_experts)
    strange = np.where(rng.random(ids.shape) < 0.3, rng.choice([-1, made.n_experts, 2**31 - 1], ids.shape), ids)
    kept = np.where(strange == ids, weights, 0).astype(np.float32)
    arguments = (on(PLACE, strange.astype(np.int32)), on(PLACE, weights), on_device(PLACE, made))
    found = off(run_experts(on(PLACE, x), *arguments, 1, torch.bfloat16))
    assert_within(found, moe_reference(x, Routing(ids, kept), made), limit)


def weighed_limit(made: Experts, top_k: int) -> Limit:
    """For a layer of three matrices whose weights become float16 numbers."""
    return layer_limit(made, "bfloat16", top_k) + WEIGHT_LIMIT + WEIGHT_LIMIT + WEIGHT_LIMIT


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", ["4 bits", "8 bits", "mxfp4"])
def test_sizes_of_rows_do_not_mix(launches: list[Any], form: str, rng: np.random.Generator) -> None:
    check_sizes(experts(rng, (2, 192, 64), form), form, 60, lambda made: weighed_limit(made, 1), rng)
    assert len(launches) == 2


@pytest.mark.usefixtures("doors", "fenced")
def test_what_is_not_finite_stays_with_its_token(launches: list[Any], rng: np.random.Generator) -> None:
    check_not_finite(experts(rng, (3, 128, 64), "4 bits"), 70, (5, 44), rng)
    assert len(launches) == 4


@pytest.mark.usefixtures("doors", "fenced")
def test_ids_that_are_no_experts_are_left_out(launches: list[Any], rng: np.random.Generator) -> None:
    made = experts(rng, (3, 128, 64), "4 bits")
    check_ids(made, 90, weighed_limit(made, 2), rng)
    assert len(launches) == 2


@pytest.mark.usefixtures("doors", "fenced")
@pytest.mark.parametrize("form", [form for form in EACH if form != "bf16"])
def test_whole_matrices(launches: list[Any], form: str, rng: np.random.Generator) -> None:
    for n_rows, shape in fewer(((1000, (2000, 192)), (700, (1160, 64)), (300, (8000, 704))), ((700, (1160, 64)),)):
        matrix, x = weight(rng, shape, BY_GROUP[form], "bfloat16"), floats(rng, (n_rows, shape[1]), "bfloat16")
        launches.clear()
        found = off(coterie.quantized_matmul(on(PLACE, x), on_device(PLACE, matrix)))
        assert len(launches) == 1
        expected = x.astype(np.float64) @ dequantize_reference(matrix).astype(np.float64).T
        assert_within(found, expected, Limit(bound("float32", shape[1])) + WEIGHT_LIMIT + ONE_PART)


@pytest.mark.usefixtures("hopper", "fenced")
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("form", EACH)
def test_matrices_of_one_format_meet_their_rows_together(
    form: str, biases: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda import halves, linear, single, tiles

    monkeypatch.setattr(tiles, "_MOST_SMALL", 0)
    monkeypatch.setattr(single, "are_shared", lambda *_arguments: False)
    joined: list[int] = []
    together = halves.multiply_together

    def counted(rows: Any, described: Any, has_bias: bool, stacks: Any) -> None:
        joined.append(len(stacks))
        together(rows, described, has_bias, stacks)

    monkeypatch.setattr(linear, "multiply_together", counted)
    # One whose rows no 16 divide goes by itself, and so does the fourth of those that could go together.
    sizes, n_columns = (160, 33, 16, 272, 48), 192
    matrices = [weight(rng, (size, n_columns), ALL[form], "bfloat16") for size in sizes]
    added = [floats(rng, (size,)) for size in sizes] if biases else [None] * len(sizes)
    (n_rows,) = fewer((700,), (70,))
    x = floats(rng, (n_rows, n_columns), "bfloat16")
    found = linear.linears(
        on(PLACE, x), [on_device(PLACE, matrix) for matrix in matrices],
        [None if one is None else on(PLACE, one) for one in added], parts=1,
    )  # fmt: skip
    assert joined == [3]
    for product, matrix, bias in zip(found, matrices, added, strict=True):
        wide = dequantize_reference(matrix) if isinstance(matrix, Packed) else matrix
        expected = x.astype(np.float64) @ wide.astype(np.float64).T
        limit = Limit(bound("float32", n_columns)) + WEIGHT_LIMIT + ONE_PART
        assert_within(off(product), expected if bias is None else expected + bias, limit)


@pytest.mark.usefixtures("fenced")
def test_a_matrix_that_cannot_be_copied_in_pieces_goes_another_way_than_those_beside_it(
    launches: list[Any], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda import linear, tiles

    monkeypatch.setattr(tiles, "_MOST_SMALL", 0)
    matrices = [weight(rng, (33, 128), BY_GROUP["4 bits"], "bfloat16") for _ in "12"]
    there = [on_device(PLACE, matrices[0]), cut_out(PLACE, matrices[1])]
    x = floats(rng, (70, 128), "bfloat16")
    for first, second in ((0, 1), (1, 0)):
        launches.clear()
        found = linear.linears(on(PLACE, x), [there[first], there[second]], (None, None), parts=1)
        assert [arguments[2].is_aligned for arguments in launches] == [True]
        for product, which in zip(found, (first, second), strict=True):
            expected = x.astype(np.float64) @ dequantize_reference(matrices[which]).astype(np.float64).T
            assert_within(off(product), expected, Limit(bound("float32", 128)) + WEIGHT_LIMIT + ONE_PART)


@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("form", [form for form in EACH if form != "bf16"])
def test_norms_come_as_halves_once_they_were_looked_for(
    form: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda import products
    from coterie.backends.cuda.decoder import verbs
    from coterie.backends.cuda.decoder.weights import adopt

    backend, (n_tokens, n, size, inner) = verbs(), (70, 3, 192, 64)
    made = experts(rng, (n, size, inner), form)
    stored = {"gate": made.gate, "up": made.up, "down": made.down}
    there = Experts(*adopt(stored, torch.device(PLACE)).values(), "silu")
    h, y, norm = (on(PLACE, floats(rng, shape)) for shape in ((n_tokens, size), (n_tokens, size), (size,)))
    ids, weights = routing_of(rng, n_tokens, 2, n)
    routing = Routing(on(PLACE, ids), on(PLACE, weights), n)

    def run_layer() -> tuple[Any, np.ndarray]:
        _, (x,) = backend.add_norms(h, [(y, None)], None, None, [norm], 1e-6)
        return x, off(backend.moe(x, routing, there).values)

    def nobody(*_: Any) -> Any:
        raise AssertionError("rows that were wished for had to be made anew")

    _, before = run_layer()
    with monkeypatch.context() as patched:
        patched.setattr(products, "Made", SimpleNamespace(empty=nobody))
        x, after = run_layer()
    np.testing.assert_array_equal(before, after)
    # Nobody looked for f32, which is made when somebody does, with the bits that it would have had.
    _, (anew,) = backend.add_norms(h, [(y, None)], None, None, [norm.clone()], 1e-6)
    np.testing.assert_array_equal(off(x.wide), off(anew.wide))


@pytest.mark.usefixtures("doors", "launches")
def test_every_row_has_the_bits_that_it_has_in_other_company(rng: np.random.Generator) -> None:
    """However wide the product is, and whoever is in it."""
    (n_rows,) = fewer((500,), (140,))
    made, x = experts(rng, (2, 704, 128), "4 bits"), floats(rng, (n_rows, 704), "bfloat16")
    ids, weights = np.zeros((n_rows, 1), np.int32), np.ones((n_rows, 1), np.float32)
    everybody = run(x, Routing(ids, weights), made)
    for n_tokens in fewer((9, 20, 40, 100), (9, 40)):
        np.testing.assert_array_equal(
            run(x[:n_tokens], Routing(ids[:n_tokens], weights[:n_tokens]), made), everybody[:n_tokens]
        )
    assert errors(everybody, moe_reference(x, Routing(ids, weights), made))[1] > 0


def test_other_forms_are_not_served(device: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda import gluon, halves
    from coterie.backends.cuda.stacks import stack_of

    monkeypatch.setattr(gluon, "serves", lambda _device: True)

    def served(form: Format, width: int, scale_dtype: str | None = "bfloat16") -> bool:
        return halves.serves(stack_of(on_device(device, weight(rng, (8, width), form, scale_dtype))))

    assert served(BY_GROUP["4 bits"], 128)
    assert not served(BY_GROUP["4 bits"], 128, "float32")
    assert not served(BY_GROUP["4 bits, groups of 32"], 96)
    assert not served(Format.resolve("affine", 4, 128), 128)
    assert not served(Format.resolve("affine", 3, 64), 128)
    assert not served(Format.resolve("nvfp4"), 128, None)
    plain = stack_of(on(device, floats(rng, (8, 128), "bfloat16")))
    assert halves.serves(plain)
    assert not halves.serves(stack_of(on(device, floats(rng, (8, 128), "float16"))))
    assert not halves.serves(stack_of(on(device, floats(rng, (8, 72), "bfloat16"))))
    assert not halves.serves(stack_of(on_device(device, weight(rng, (8, 128), BY_GROUP["4 bits"], "bfloat16"))), plain)
    assert not halves.serves(stack_of(cut_out(device, weight(rng, (8, 128), BY_GROUP["mxfp4"]))))


def test_a_triton_that_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda import gluon, launch

    monkeypatch.setattr(launch.INTERPRETED, "value", False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(gluon, "single_rows_kernel", None)
    with pytest.warns(UserWarning, match="slower ones are used"):
        assert not gluon.serves.__wrapped__(torch.device("cuda", 0))
