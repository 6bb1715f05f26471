"""Activations of 8 bits: the kernels against a model of exactly their arithmetic, the layer against float64."""

import ctypes

import numpy as np
import pytest

import coterie
from coterie import Experts, Routing
from coterie.arrays import bfloat16
from coterie.backends.cpu import isa, pool
from coterie.backends.cpu import product as p
from coterie.backends.cpu.int8_layer import _matrix_of, _round_phase
from coterie.backends.cpu.int8_product import scratch_bytes, why_not
from coterie.backends.cpu.kernels.int8_few import FEW_TOKENS
from coterie.backends.cpu.kernels.int8_round import FACTOR_BYTES, SMALLEST_SCALED
from coterie.backends.cpu.matrix import layout_of
from coterie.backends.cpu.product import MAX_ROWS, MAX_TOKENS
from coterie.errors import ArgumentError, UnsupportedError
from coterie.formats import Format, Packed
from coterie.moe import moe_reference
from coterie.ops.activations import glu_reference
from cpu.cases import exact, packed_of
from cpu.test_bounds import Guarded
from layers import experts_of, routing_of
from tolerance import assert_close, bound, errors

FORMATS = [Format.resolve("affine", bits, group) for bits in (4, 8) for group in (32, 64, 128)]
FORMATS += [Format.resolve("mxfp4"), Format.resolve("nvfp4")]
FOUR_BITS, EIGHT_BITS = Format.resolve("affine", 4, 64), Format.resolve("affine", 8, 64)
WITHOUT = [Format.resolve("affine", bits, 32) for bits in (1, 2, 3, 5, 6)] + [Format.resolve("mxfp8")]

here = pytest.mark.skipif(
    bool(why_not(layout_of(FOUR_BITS, np.dtype(np.float32)))), reason="this machine has no AVX-512 VNNI"
)


def rounded(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Integers [..., K] and scales f32 [..., K / group, 1] of activations, operation by operation as the kernel's."""
    groups = x.astype(np.float32).reshape(*x.shape[:-1], -1, group)
    largest = np.abs(groups).max(-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(largest <= SMALLEST_SCALED, 0, np.float32(127) / largest).astype(np.float32)
    scale = np.where(largest <= SMALLEST_SCALED, 0, largest / np.float32(127)).astype(np.float32)
    return np.rint(groups * inverse).astype(np.int8), scale


def as_used(x: np.ndarray, group: int) -> np.ndarray:
    """What the activations are after rounding, in float64."""
    integers, scale = rounded(x, group)
    return (integers.astype(np.float64) * scale).reshape(x.shape)


def prepare(x: np.ndarray, packed: Packed) -> np.ndarray:
    """The prepared rows of activations, uint8 [T, bytes], made by the job in the pool."""
    matrix = _matrix_of(packed, None, "weight")
    records = np.full((len(x), matrix.prepared_bytes), 0xFF, np.uint8)
    current = pool.get_pool()
    with current.lock:
        current.run(_round_phase(current, matrix.prepare, x, pool.address_of(records)))
    return records


def multiply(x: np.ndarray, packed: Packed, prepared: np.ndarray | None = None) -> np.ndarray:
    """The product kernel's own result for x [T, K] and packed [N, K]; its scratch and result hold NaNs before."""
    matrix = _matrix_of(packed, None, "weight")
    prepared = prepare(x, packed) if prepared is None else prepared
    inputs = np.array([pool.address_of(row) for row in prepared], np.int64)
    n_rows = packed.shape[0]
    out = np.full((len(x), -(-n_rows // 32) * 32), np.nan, np.float32)
    scratch = np.full(scratch_bytes(isa.current()) + 64, 0xFF, np.uint8)
    call = np.zeros(p.CALL_WORDS, np.int64)
    biases = 0 if packed.biases is None else pool.address_of(packed.biases)
    call[: p.SUMS] = [
        pool.address_of(packed.codes), packed.codes.strides[0], pool.address_of(packed.scales),
        packed.scales.strides[0], biases, packed.shape[1], n_rows, pool.address_of(inputs), len(x),
        pool.address_of(out), out.shape[1], pool.aligned(pool.address_of(scratch)),
    ]  # fmt: skip
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(int(matrix.words[0]))(pool.address_of(call))
    return out[:, :n_rows]


def check(x: np.ndarray, packed: Packed) -> None:
    """Integer sums are exact, so f32 errors are those of the sum over groups, with a factor and an offset for each."""
    expected = as_used(x, packed.format.group_size) @ exact(packed).T
    limit = bound("float32", 3 * packed.shape[1] // packed.format.group_size)
    assert limit < 1e-5
    assert_close(multiply(x, packed), expected, limit)


@here
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_format(fmt: Format, rng: np.random.Generator) -> None:
    for n_groups in (1, 3, 7):
        packed = packed_of(rng, (37, n_groups * fmt.group_size), fmt)
        for n_tokens in (1, 5, FEW_TOKENS + 3):
            check(rng.standard_normal((n_tokens, packed.shape[1])).astype(np.float32), packed)


@here
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, MAX_TOKENS])
@pytest.mark.parametrize("fmt", [FOUR_BITS, EIGHT_BITS, Format.resolve("mxfp4")], ids=str)
def test_token_counts_around_tiles(fmt: Format, n_tokens: int, rng: np.random.Generator) -> None:
    check(rng.standard_normal((n_tokens, 704)).astype(np.float32), packed_of(rng, (33, 704), fmt))


@here
@pytest.mark.parametrize("n_rows", [1, 15, 16, 17, 31, 32, 33, 48, MAX_ROWS])
def test_row_counts_around_tiles(n_rows: int, rng: np.random.Generator) -> None:
    packed = packed_of(rng, (n_rows, 192), FOUR_BITS)
    for n_tokens in (2, 9):
        # Activations that resemble a weight row: a result that stands alone must not be small by accident.
        check((rng.standard_normal((n_tokens, 192)) + 20 * exact(packed)[0]).astype(np.float32), packed)


@here
@pytest.mark.parametrize("n_inputs", [64, 128, 704, 1024, 1088, 2048, 2112, 2880])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16], ids=["f32", "f16", "bf16"])
def test_row_lengths_around_panels_and_dtypes_of_scales(dtype: np.dtype, n_inputs: int, rng) -> None:  # type: ignore[no-untyped-def]
    packed = packed_of(rng, (18, n_inputs), FOUR_BITS, dtype)
    for n_tokens in (3, 10):
        check(rng.standard_normal((n_tokens, n_inputs)).astype(np.float32), packed)


@here
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_rounding_bit_for_bit(fmt: Format, rng: np.random.Generator) -> None:
    group = fmt.group_size
    packed = packed_of(rng, (1, 4 * group), fmt)
    x = (rng.standard_normal((9, 4 * group)) * 10.0 ** rng.integers(-20, 20, (9, 1))).astype(np.float32)
    x[1, :group], x[2, :group], x[3] = 0, 1e-38, -1e36
    x[4, ::2] = 0.5 * 127
    x[4, 0] = 127
    records = prepare(x, packed)[:, : 4 * (group + FACTOR_BYTES)].reshape(9, 4, group + FACTOR_BYTES)
    integers, scale = rounded(x, group)
    quads = 8 // fmt.bits
    order = [byte * quads + quad for quad in range(quads) for byte in range(4)]
    expected = integers.reshape(9, 4, -1, len(order))[..., order].reshape(9, 4, group)
    np.testing.assert_array_equal(records[..., :group].view(np.int8), expected)
    np.testing.assert_array_equal(records[..., group : group + 4].copy().view(np.float32), scale)
    sums = integers.astype(np.int32).sum(-1, keepdims=True)
    found = records[..., group + 4 :].copy()
    if fmt.mode == "affine":
        np.testing.assert_array_equal(found.view(np.float32), sums.astype(np.float32) * scale)
    else:
        np.testing.assert_array_equal(found.view(np.int32), -12 * sums)


@here
@pytest.mark.parametrize("fmt", [FOUR_BITS, EIGHT_BITS, Format.resolve("mxfp4")], ids=str)
@pytest.mark.parametrize("n_tokens", [2, 9])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(value: float, n_tokens: int, fmt: Format, rng: np.random.Generator) -> None:
    packed = packed_of(rng, (20, 256), fmt)
    x = rng.standard_normal((n_tokens, 256)).astype(np.float32)
    x[1, 100] = value
    found = multiply(x, packed)
    assert not np.isfinite(found[1]).any()
    assert np.isfinite(np.delete(found, 1, 0)).all()


@here
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_nothing_is_read_outside(fmt: Format, rng: np.random.Generator) -> None:
    for n_groups in (1, 3, 8):
        packed = packed_of(rng, (19, n_groups * fmt.group_size), fmt)
        parts = [part if part is None else Guarded(part) for part in (packed.codes, packed.scales, packed.biases)]
        codes, scales, biases = (part if part is None else part.array for part in parts)
        guarded = Packed(codes, scales, biases, fmt.bits, fmt.group_size, fmt.mode)
        for n_tokens in (1, 5, 11):
            x = Guarded(rng.standard_normal((n_tokens, packed.shape[1])).astype(np.float32))
            prepared = Guarded(prepare(x.array, guarded))
            expected = as_used(x.array, fmt.group_size) @ exact(packed).T
            assert_close(multiply(x.array, guarded, prepared.array), expected, bound("float32", 3 * n_groups))


def modelled(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, experts: Experts) -> np.ndarray:
    """The layer in float64 but for the two roundings."""
    tokens = as_used(x, experts.gate.format.group_size)
    gate, up, down = (exact(projection) for projection in (experts.gate, experts.up, experts.down))
    out = np.zeros(x.shape)
    for token, slot in np.ndindex(ids.shape):
        expert = ids[token, slot]
        hidden = glu_reference(tokens[token] @ gate[expert].T, tokens[token] @ up[expert].T, experts.activation)
        used = as_used(hidden.astype(np.float32)[None], experts.down.format.group_size)[0]
        out[token] += weights[token, slot].astype(np.float64) * (used @ down[expert].T)
    return out


# A hidden value within f32's error of the middle between two integers may be rounded either way: of values with 127
# steps and errors of 4 * eps * sqrt(K), a share of 127 * 4 * eps * sqrt(K), each wrong by a step, 1/127 of the largest.
def flips(depth: int) -> float:
    share = 127 * bound("float32", depth)
    return 4 * share**0.5 / 127 + bound("float32", depth)


@here
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "swiglu_clamped", "gelu"])
@pytest.mark.parametrize(
    "fmt", [FOUR_BITS, EIGHT_BITS, Format.resolve("mxfp4"), Format.resolve("affine", 4, 128)], ids=str
)
def test_the_layer_does_what_it_says(fmt: Format, activation: str, rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 5, 384, 256, fmt, activation=activation)
    x = rng.standard_normal((21, 384)).astype(np.float32)
    ids, weights = routing_of(rng, 21, 2, 5, empty=3)
    found = coterie.moe(x, Routing(ids, weights), experts, precision="int8")
    assert_close(found, modelled(x, ids, weights, experts), flips(384))
    worst, overall = errors(found, moe_reference(x, Routing(ids, weights), experts))
    assert 0.003 < overall < 0.018
    assert worst < 0.024


@here
@pytest.mark.parametrize("n_tokens", [1, 3, 97])
@pytest.mark.parametrize("fmt", [FOUR_BITS, Format.resolve("mxfp4")], ids=str)
def test_all_rows_to_one_expert_and_odd_sizes(fmt: Format, n_tokens: int, rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 3, 320, 704, fmt, biases=True, fused=True)
    x = rng.standard_normal((n_tokens, 320)).astype(np.float32)
    routing = Routing(np.full((n_tokens, 1), 2, np.uint32), np.ones((n_tokens, 1), np.float32))
    found = coterie.moe(x, routing, experts, precision="int8")
    worst, overall = errors(found, moe_reference(x, routing, experts))
    assert 0.0 < overall < 0.018
    assert worst < 0.024


@here
def test_the_number_of_threads_and_the_company_of_other_tokens_change_nothing(rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 4, 256, 192, FOUR_BITS)
    x = rng.standard_normal((40, 256)).astype(np.float32)
    ids, weights = routing_of(rng, 40, 2, 4)
    results = []
    try:
        for n_threads in (1, 2, 5):
            pool.set_num_threads(n_threads)
            results.append(coterie.moe(x, Routing(ids, weights), experts, precision="int8"))
    finally:
        pool.set_num_threads(None)
    alone = [
        coterie.moe(x[t : t + 1], Routing(ids[t : t + 1], weights[t : t + 1]), experts, precision="int8")
        for t in range(40)
    ]
    for other in (*results[1:], np.concatenate(alone)):
        np.testing.assert_array_equal(other, results[0])


@here
def test_the_default_is_exact_before_and_after(rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 4, 256, 192, FOUR_BITS)
    x = rng.standard_normal((9, 256)).astype(np.float32)
    routing = Routing(*routing_of(rng, 9, 2, 4))
    before = coterie.moe(x, routing, experts)
    coterie.moe(x, routing, experts, precision="int8")
    for precision in ("default", "exact"):
        np.testing.assert_array_equal(coterie.moe(x, routing, experts, precision=precision), before)
    assert_close(before, moe_reference(x, routing, experts), bound("float32", 256, 192, 2))


@pytest.mark.parametrize("fmt", [*WITHOUT, "float32", "bfloat16"], ids=str)
def test_formats_without_a_kernel_are_refused(fmt: Format | str, rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 2, 64, 64, fmt)
    routing = Routing(*routing_of(rng, 3, 1, 2))
    with pytest.raises(UnsupportedError, match=r'precision="int8".*use precision="default"'):
        coterie.moe(np.ones((3, 64), np.float32), routing, experts, precision="int8")


@pytest.mark.parametrize("name", [kind.name for kind in isa.ISAS if kind.name != "avx512" and isa.runs_here(kind)])
def test_instruction_sets_without_a_kernel_are_refused(name: str, rng: np.random.Generator) -> None:
    experts = experts_of(rng, "numpy", 2, 64, 64, FOUR_BITS)
    routing = Routing(*routing_of(rng, 3, 1, 2))
    isa.use(name)
    try:
        with pytest.raises(UnsupportedError, match=f"VNNI.*{name}"):
            coterie.moe(np.ones((3, 64), np.float32), routing, experts, precision="int8")
    finally:
        isa.use()


@here
def test_gate_and_up_of_two_formats_are_refused(rng: np.random.Generator) -> None:
    first, second = (experts_of(rng, "numpy", 2, 64, 64, fmt) for fmt in (FOUR_BITS, EIGHT_BITS))
    mixed = Experts(first.gate, second.up, first.down)
    with pytest.raises(UnsupportedError, match=r"gate is affine 4 bits.* up is affine 8 bits"):
        coterie.moe(np.ones((3, 64), np.float32), Routing(*routing_of(rng, 3, 1, 2)), mixed, precision="int8")


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
