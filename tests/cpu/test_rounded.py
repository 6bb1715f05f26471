"""Activations of 16 and of 8 bits: kernels against a model of exactly their arithmetic, layers against float64."""

import numpy as np
import pytest

import coterie
from coterie import Experts, Routing
from coterie.arrays import bfloat16
from coterie.backends.cpu import isa, pool
from coterie.backends.cpu.kernels.int8_few import FEW_TOKENS
from coterie.backends.cpu.kernels.int8_round import FACTOR_BYTES
from coterie.backends.cpu.matrix import layout_of, matrix_of
from coterie.backends.cpu.product import MAX_ROWS, MAX_TOKENS
from coterie.errors import ArgumentError, UnsupportedError
from coterie.formats import Format, Packed
from coterie.moe import moe_reference
from cpu.cases import exact, packed_of
from cpu.rounded import FORMATS, NARROW, SETS, as_used, flips, modelled, multiply, prepare, rounded
from cpu.test_bounds import Guarded
from layers import experts_of, routing_of
from tolerance import assert_close, bound, errors

FOUR_BITS, EIGHT_BITS, MXFP4 = Format.resolve("affine", 4, 64), Format.resolve("affine", 8, 64), Format.resolve("mxfp4")
WITHOUT = [Format.resolve("affine", bits, 32) for bits in (1, 2, 3, 5, 6)] + [Format.resolve("mxfp8")]
PRECISIONS = ("default", "int8")
LIMITS = {"default": (1e-6, 8e-5, 1e-4), "int8": (0.003, 0.018, 0.024)}
"""By precision: the least and the largest overall error of a layer, and the largest of a row."""

pytestmark = pytest.mark.skipif(not isa.choose("")[0].multiplies_integers, reason="kernels here are in f32 only")


def check(x: np.ndarray, packed: Packed, precision: str) -> None:
    """Integer sums are exact, so f32 errors are those of the sum over groups, with a factor and an offset for each."""
    expected = as_used(x, packed.format.group_size, precision) @ exact(packed).T
    limit = bound("float32", 3 * packed.shape[1] // packed.format.group_size)
    assert limit < 1e-5
    assert_close(multiply(x, packed, precision), expected, limit)


def normal(rng: np.random.Generator, n_tokens: int, n_inputs: int) -> np.ndarray:
    return rng.standard_normal((n_tokens, n_inputs)).astype(np.float32)


CASES = [(fmt, precision) for precision in PRECISIONS for fmt in FORMATS] + [(fmt, "default") for fmt in NARROW]


@pytest.mark.parametrize(("fmt", "precision"), CASES, ids=str)
def test_every_format(fmt: Format, precision: str, rng: np.random.Generator) -> None:
    for n_groups in (1, 3, 7, 23):
        packed = packed_of(rng, (37, n_groups * fmt.group_size), fmt)
        for n_tokens in (1, 3, 5, FEW_TOKENS + 3):
            check(normal(rng, n_tokens, packed.shape[1]), packed, precision)


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, MAX_TOKENS])
@pytest.mark.parametrize("fmt", [FOUR_BITS, EIGHT_BITS, MXFP4], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_token_counts_around_tiles(precision: str, fmt: Format, n_tokens: int, rng: np.random.Generator) -> None:
    check(normal(rng, n_tokens, 704), packed_of(rng, (33, 704), fmt), precision)


@pytest.mark.parametrize("n_rows", [1, 2, 3, 15, 16, 17, 31, 32, 33, 48, MAX_ROWS])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_row_counts_around_tiles(precision: str, n_rows: int, rng: np.random.Generator) -> None:
    packed = packed_of(rng, (n_rows, 192), FOUR_BITS)
    for n_tokens in (2, 4, 9):
        # Activations that resemble a weight row: a result that stands alone must not be small by accident.
        check((normal(rng, n_tokens, 192) + 20 * exact(packed)[0]).astype(np.float32), packed, precision)


@pytest.mark.parametrize("n_inputs", [64, 128, 704, 1024, 1088, 2048, 2112, 2880])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_row_lengths_around_panels_and_dtypes_of_scales(
    precision: str, dtype: np.dtype, n_inputs: int, rng: np.random.Generator
) -> None:
    packed = packed_of(rng, (18, n_inputs), FOUR_BITS, dtype)
    for n_tokens in (3, 10):
        check(normal(rng, n_tokens, n_inputs), packed, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SETS[1:])
def test_every_instruction_set(name: str, precision: str, rng: np.random.Generator) -> None:
    isa.use(name)
    try:
        for fmt in (FOUR_BITS, Format.resolve("affine", 8, 128), MXFP4):
            packed = packed_of(rng, (35, 5 * fmt.group_size), fmt)
            for n_tokens in (1, 2, 4, 5, 11):
                check(normal(rng, n_tokens, packed.shape[1]), packed, precision)
            # The largest integers there are: nothing on the way may overflow or saturate.
            codes = np.full_like(packed.codes, 0x77777777 if fmt.mode == "mxfp4" else 0xFFFFFFFF)
            full = Packed(codes, packed.scales, packed.biases, fmt.bits, fmt.group_size, fmt.mode)
            for sign in (1, -1):
                for n_tokens in (1, 11):
                    check(sign * np.ones((n_tokens, packed.shape[1]), np.float32), full, precision)
        experts = experts_of(rng, "numpy", 3, 128, 192, FOUR_BITS)
        x, routing = normal(rng, 9, 128), Routing(*routing_of(rng, 9, 2, 3))
        worst, _ = errors(coterie.moe(x, routing, experts, precision=precision), moe_reference(x, routing, experts))
        assert worst < LIMITS[precision][2]
    finally:
        isa.use()


def hostile(rng: np.random.Generator, group: int, largest: int) -> np.ndarray:
    x = (rng.standard_normal((9, 4 * group)) * 10.0 ** rng.integers(-20, 20, (9, 1))).astype(np.float32)
    x[1, :group], x[2, :group], x[3] = 0, 1e-38, -1e36
    x[4, ::2] = 0.5 * largest
    x[4, 0] = largest
    return x


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_rounding_to_8_bits_bit_for_bit(fmt: Format, rng: np.random.Generator) -> None:
    group = fmt.group_size
    x = hostile(rng, group, 127)
    records = prepare(x, packed_of(rng, (1, 4 * group), fmt), "int8")[:, : 4 * (group + FACTOR_BYTES)]
    records = records.reshape(9, 4, group + FACTOR_BYTES)
    integers, scale = rounded(x, group, "int8")
    quads = 8 // fmt.bits
    order = [byte * quads + quad for quad in range(quads) for byte in range(4)]
    expected = integers.reshape(9, 4, -1, len(order))[..., order].reshape(9, 4, group)
    np.testing.assert_array_equal(records[..., :group].view(np.int8), expected)
    np.testing.assert_array_equal(records[..., group : group + 4].copy().view(np.float32), scale)
    same_offsets(fmt, records[..., group + 4 :].copy(), integers.sum(-1, keepdims=True), scale)


@pytest.mark.parametrize("fmt", FORMATS + NARROW, ids=str)
def test_rounding_to_16_bits_bit_for_bit(fmt: Format, rng: np.random.Generator) -> None:
    group, current = fmt.group_size, isa.current()
    x = hostile(rng, group, 32639)
    packed = packed_of(rng, (1, 4 * group), fmt)
    layout = layout_of(fmt, packed.scales.dtype)
    rows = prepare(x, packed, "default")
    integers, scale = rounded(x, group, "default")
    padded = np.zeros((9, layout.padded(4 * group)), np.int32)
    padded[:, : 4 * group] = integers.reshape(9, -1)
    # Unit by unit, of 8 or of 16 bits, the codes that it holds: the integers of a field stand together.
    unit = 8 if current.vnni else 16
    shape = (9, layout.padded(4 * group) // layout.block, -1, unit // fmt.bits)
    expected = padded.reshape(shape).swapaxes(2, 3)
    held = np.broadcast_to(np.arange(padded.shape[1]) < 4 * group, padded.shape).reshape(shape).swapaxes(2, 3)
    found = rows[:, : 2 * padded.shape[1]].copy()
    if current.vnni:
        high, low = found.view(np.int8).reshape(9, -1, 2, *expected.shape[2:]).astype(np.int32).swapaxes(0, 2)
        found = (256 * high + low).swapaxes(0, 1)
    else:
        found = found.view(np.int16).reshape(expected.shape)
    np.testing.assert_array_equal(found[held], expected[held])
    scales, sums = (rows[:, 2 * padded.shape[1] + 16 * part :][:, :16].copy() for part in (0, 1))
    np.testing.assert_array_equal(scales.view(np.float32), scale[..., 0])
    same_offsets(fmt, sums, integers.sum(-1), scale[..., 0])


def same_offsets(fmt: Format, found: np.ndarray, sums: np.ndarray, scale: np.ndarray) -> None:
    if fmt.mode == "affine":
        np.testing.assert_array_equal(found.view(np.float32), sums.astype(np.float32) * scale)
    else:
        np.testing.assert_array_equal(found.view(np.int32), -12 * sums)


@pytest.mark.parametrize("fmt", [FOUR_BITS, EIGHT_BITS, MXFP4], ids=str)
@pytest.mark.parametrize("n_tokens", [2, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_not_finite_stays_visible(
    precision: str, value: float, n_tokens: int, fmt: Format, rng: np.random.Generator
) -> None:
    packed, x = packed_of(rng, (20, 256), fmt), normal(rng, n_tokens, 256)
    x[1, 100] = value
    found = multiply(x, packed, precision)
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(np.delete(found, 1, 0)).all()


@pytest.mark.parametrize(("fmt", "precision"), CASES, ids=str)
def test_nothing_is_read_outside(fmt: Format, precision: str, rng: np.random.Generator) -> None:
    for n_groups in (1, 3, 8):
        packed = packed_of(rng, (19, n_groups * fmt.group_size), fmt)
        parts = [part if part is None else Guarded(part) for part in (packed.codes, packed.scales, packed.biases)]
        codes, scales, biases = (part if part is None else part.array for part in parts)
        guarded = Packed(codes, scales, biases, fmt.bits, fmt.group_size, fmt.mode)
        for n_tokens in (1, 5, 11):
            x = Guarded(normal(rng, n_tokens, packed.shape[1]))
            prepared = Guarded(prepare(x.array, guarded, precision))
            expected = as_used(x.array, fmt.group_size, precision) @ exact(packed).T
            found = multiply(x.array, guarded, precision, prepared.array)
            assert_close(found, expected, bound("float32", 3 * n_groups))


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_clamped", "gelu"])
@pytest.mark.parametrize("fmt", [FOUR_BITS, EIGHT_BITS, MXFP4, Format.resolve("affine", 4, 128)], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_layer_does_what_it_says(precision: str, fmt: Format, activation: str, rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 5, 384, 256, fmt, activation=activation)
    least, most, worst_row = LIMITS[precision]
    for n_tokens in (2, 21):
        x = normal(rng, n_tokens, 384)
        ids, weights = routing_of(rng, n_tokens, 2, 5, empty=3)
        found = coterie.moe(x, Routing(ids, weights), experts, precision=precision)
        assert_close(found, modelled(x, ids, weights, experts, precision), flips(384, precision))
        worst, overall = errors(found, moe_reference(x, Routing(ids, weights), experts))
        assert least < overall < most
        assert worst < worst_row


@pytest.mark.parametrize("n_tokens", [1, 3, 97])
@pytest.mark.parametrize("fmt", [FOUR_BITS, MXFP4], ids=str)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_rows_to_one_expert_and_odd_sizes(
    precision: str, fmt: Format, n_tokens: int, rng: np.random.Generator
) -> None:
    experts = experts_of(rng, "numpy", 3, 320, 704, fmt, biases=True, fused=True)
    x = normal(rng, n_tokens, 320)
    routing = Routing(np.full((n_tokens, 1), 2, np.uint32), np.ones((n_tokens, 1), np.float32))
    found = coterie.moe(x, routing, experts, precision=precision)
    worst, overall = errors(found, moe_reference(x, routing, experts))
    assert 0.0 < overall < LIMITS[precision][1]
    assert worst < LIMITS[precision][2]


@pytest.mark.parametrize("precision", ["exact", "default", "int8"])
def test_the_number_of_threads_changes_nothing(precision: str, rng: np.random.Generator) -> None:
    experts, x = experts_of(rng, "numpy", 4, 256, 192, FOUR_BITS), normal(rng, 40, 256)
    ids, weights = routing_of(rng, 40, 2, 4)
    results = []
    try:
        for n_threads in (1, 2, 5):
            pool.set_num_threads(n_threads)
            results.append(coterie.moe(x, Routing(ids, weights), experts, precision=precision))
    finally:
        pool.set_num_threads(None)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    alone = [
        coterie.moe(x[t : t + 1], Routing(ids[t : t + 1], weights[t : t + 1]), experts, precision=precision)
        for t in range(40)
    ]
    if precision == "int8":
        np.testing.assert_array_equal(np.concatenate(alone), results[0])
    else:
        # One token and many take different kernels, whose sums in f32 have another order.
        assert_close(np.concatenate(alone), results[0].astype(np.float64), flips(256, "default"))


def test_both_ways_of_the_down_weights_give_the_same_bits(rng: np.random.Generator) -> None:
    experts, x = experts_of(rng, "numpy", 40, 128, 64, FOUR_BITS), normal(rng, 12, 128)
    ids, weights = routing_of(rng, 12, 4, 40)
    few = coterie.moe(x, Routing(ids, weights), experts)
    # Enough company for one expert that the average is no longer few.
    company = np.tile(x[:1], (200, 1))
    more = (np.full((200, 4), 39, np.uint32), np.ones((200, 4), np.float32))
    keep = ~(ids == 39).any(-1)
    assert keep.any()
    routing = Routing(*(np.concatenate(pair) for pair in zip((ids, weights), more, strict=True)))
    many = coterie.moe(np.concatenate([x, company]), routing, experts)
    np.testing.assert_array_equal(many[:12][keep], few[keep])


def test_exact_is_exact_whatever_ran_before(rng: np.random.Generator) -> None:
    experts, x = experts_of(rng, "numpy", 4, 256, 192, FOUR_BITS), normal(rng, 9, 256)
    routing = Routing(*routing_of(rng, 9, 2, 4))
    before = coterie.moe(x, routing, experts, precision="exact")
    for precision in ("int8", "default"):
        coterie.moe(x, routing, experts, precision=precision)
        np.testing.assert_array_equal(coterie.moe(x, routing, experts, precision="exact"), before)
    assert_close(before, moe_reference(x, routing, experts), bound("float32", 256, 192, 2))


def test_gate_and_up_of_two_formats(rng: np.random.Generator) -> None:
    first, second = (experts_of(rng, "numpy", 2, 64, 64, fmt) for fmt in (FOUR_BITS, EIGHT_BITS))
    mixed, x = Experts(first.gate, second.up, first.down), normal(rng, 7, 64)
    routing = Routing(*routing_of(rng, 7, 1, 2))
    for precision in PRECISIONS:
        worst, _ = errors(coterie.moe(x, routing, mixed, precision=precision), moe_reference(x, routing, mixed))
        assert worst < LIMITS[precision][2]


@pytest.mark.parametrize("fmt", [*WITHOUT, "float32", "bfloat16"], ids=str)
def test_formats_without_a_kernel_are_refused(fmt: Format | str, rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 2, 64, 64, fmt)
    routing = Routing(*routing_of(rng, 3, 1, 2))
    with pytest.raises(UnsupportedError, match=r'precision="int8".*gate is .*use precision="default"'):
        coterie.moe(np.ones((3, 64), np.float32), routing, experts, precision="int8")


def test_by_default_formats_without_a_kernel_are_products_in_f32(rng: np.random.Generator) -> None:
    for fmt in WITHOUT[2:]:
        assert matrix_of(packed_of(rng, (4, 64), fmt), precision="default").arithmetic.name == "f32"


@pytest.mark.parametrize("name", [kind.name for kind in isa.ISAS if isa.runs_here(kind) and kind.name not in SETS])
def test_instruction_sets_without_a_kernel_are_refused(name: str, rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 2, 64, 64, FOUR_BITS)
    routing = Routing(*routing_of(rng, 3, 1, 2))
    isa.use(name)
    try:
        with pytest.raises(UnsupportedError, match=f"AVX2.*{name}"):
            coterie.moe(np.ones((3, 64), np.float32), routing, experts, precision="int8")
        assert matrix_of(experts.gate, precision="default").arithmetic.name == "f32"
    finally:
        isa.use()


@pytest.mark.parametrize("name", ["INT8", "fp8", "", None])
def test_unknown_names_are_refused(name: object, rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 2, 64, 64, FOUR_BITS)
    with pytest.raises(ArgumentError, match=r"precision is .*expected one of default, exact, int8"):
        coterie.moe(
            np.ones((3, 64), np.float32), Routing(*routing_of(rng, 3, 1, 2)), experts, precision=name  # type: ignore[arg-type]
        )  # fmt: skip


def test_mlx_arrays_are_refused(rng: np.random.Generator) -> None:
    mx = pytest.importorskip("mlx.core")
    experts = experts_of(rng, "mlx", 2, 64, 64, FOUR_BITS)
    ids, weights = (mx.array(part) for part in routing_of(rng, 3, 1, 2))
    with pytest.raises(UnsupportedError, match="only the CPU back end"):
        coterie.moe(mx.ones((3, 64)), Routing(ids, weights), experts, precision="int8")
