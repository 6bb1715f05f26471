"""The decoder's verbs on the CPU against float64: every bound is a small multiple of eps * sqrt(length of the sum)."""

import tracemalloc

import numpy as np
import pytest

from coterie.backends.cpu import isa
from coterie.backends.cpu.decoder import attention, elementwise, matrices
from coterie.backends.cpu.isa import ISAS, runs_here
from coterie.formats import Format, Packed
from coterie.formats.codec import dequantize, dequantize_f64, quantize
from coterie.formats.spec import AFFINE_BITS, AFFINE_GROUP_SIZES
from coterie.models.rope import default_rope, proportional_rope, rotation_table
from models.plain_backend import PlainBackend

EPS = float(np.finfo(np.float32).eps)
PLAIN = PlainBackend()


def worst_row(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest error of a row relative to that row's root mean square."""
    error = np.abs(found.astype(np.float64) - expected).max(axis=-1)
    return float((error / np.sqrt(np.mean(expected**2, axis=-1))).max())


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 128), (3, 4, 32), (5, 2816), (2, 16, 512), (7, 131), (47, 2816), (9, 1, 16_001)]
)
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm(shape: tuple[int, ...], weighted: bool, rng: np.random.Generator) -> None:
    x = (rng.standard_normal(shape) * 3).astype(np.float32)
    weight = rng.standard_normal(shape[-1]).astype(np.float32) if weighted else None
    expected = PLAIN.rms_norm(x.astype(np.float64), weight, 1e-6)
    assert worst_row(elementwise.rms_norm(x, weight, 1e-6), expected) < 8 * EPS * (1 + np.sqrt(shape[-1]) / 8)


def test_rms_norm_of_zeros_and_of_tiny_numbers() -> None:
    x = np.zeros((2, 64), np.float32)
    x[1] = 1e-20
    found = elementwise.rms_norm(x, None, 1e-6)
    assert np.array_equal(found[0], np.zeros(64))
    np.testing.assert_allclose(found[1], 1e-17, rtol=1e-5)


def test_rms_norm_lets_nan_and_infinity_through() -> None:
    x = np.ones((3, 8), np.float32)
    x[0, 3], x[1, 5] = np.nan, np.inf
    found = elementwise.rms_norm(x, None, 1e-6)
    assert np.isnan(found[0]).all()
    assert np.isnan(found[1, 5])
    assert np.isfinite(found[2]).all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("n_tokens", "heads", "dims"), [(1, 1, 2), (4, 3, 16), (9, 16, 128), (2, 2, 512), (83, 16, 128)]
)
def test_rotary(n_tokens: int, heads: int, dims: int, interleaved: bool, rng: np.random.Generator) -> None:
    x = rng.standard_normal((n_tokens, heads, dims)).astype(np.float32)
    frequencies = np.array(default_rope(1e4, dims).frequencies, np.float32)
    cos, sin = rotation_table(frequencies, 1000 + np.arange(n_tokens))
    expected = PLAIN.rotary(x.astype(np.float64), cos, sin, interleaved)
    assert np.abs(elementwise.rotary(x.copy(), cos, sin, interleaved) - expected).max() < 8 * EPS * np.abs(x).max()


def test_still_pairs_pass_through_unchanged(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 2, 64)).astype(np.float32)
    frequencies = np.array(proportional_rope(1e6, 64, 0.25).frequencies, np.float32)
    assert np.count_nonzero(frequencies) == 8
    found = elementwise.rotary(x.copy(), *rotation_table(frequencies, 5 + np.arange(3)))
    moved = np.flatnonzero((found != x).any(axis=(0, 1)))
    assert moved.tolist() == [*range(8), *range(32, 40)]


@pytest.mark.parametrize("interleaved", [False, True])
def test_dimensions_beyond_the_rotation_pass_through(interleaved: bool, rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 2, 64)).astype(np.float32)
    frequencies = np.array(default_rope(1e4, 32).frequencies, np.float32)
    cos, sin = rotation_table(frequencies, 7 + np.arange(3))
    found = elementwise.rotary(x.copy(), cos, sin, interleaved)
    assert np.array_equal(found[..., 32:], x[..., 32:])
    assert np.abs(found - PLAIN.rotary(x.astype(np.float64), cos, sin, interleaved)).max() < 1e-5


def test_softcap(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((3, 1000)) * 40).astype(np.float32)
    kept = x.copy()
    np.testing.assert_allclose(elementwise.softcap(x, 30.0), PLAIN.softcap(kept.astype(np.float64), 30.0), rtol=1e-6)
    assert np.array_equal(x, kept)


ATTENTION = [
    # tokens, query heads, key-value heads, dims, start, window, capacity
    (1, 4, 2, 16, 0, None, 8),
    (1, 4, 2, 16, 99, None, 128),
    (1, 16, 8, 256, 40, 16, 23),
    (1, 16, 2, 512, 1000, None, 1024),
    (1, 3, 3, 32, 30, 31, 31),
    (2, 4, 1, 64, 0, None, 2),
    (8, 4, 2, 32, 0, 16, 23),
    (8, 4, 2, 32, 37, 16, 23),
    (48, 8, 8, 64, 0, 16, 63),
    (31, 8, 2, 64, 70, None, 128),
    (5, 2, 1, 128, 3, 1, 5),
    (130, 8, 2, 128, 0, None, 130),
    (70, 6, 2, 80, 65, None, 135),
    (70, 32, 2, 20, 3, 40, 109),
    (3, 48, 2, 64, 200, 100, 102),
]


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize(("n_tokens", "heads", "kv_heads", "dims", "start", "window", "capacity"), ATTENTION)
def test_attention(
    n_tokens: int,
    heads: int,
    kv_heads: int,
    dims: int,
    start: int,
    window: int | None,
    capacity: int,
    with_sinks: bool,
    rng: np.random.Generator,
) -> None:
    queries = rng.standard_normal((n_tokens, heads, dims)).astype(np.float32)
    keys, values = (rng.standard_normal((kv_heads, capacity, dims)).astype(np.float32) for _ in range(2))
    poison_unseen(keys, values, start, n_tokens, window)
    # From a sink that takes nothing to one that takes nearly everything.
    sinks = np.linspace(-200, 8, heads, dtype=np.float32) if with_sinks else None
    expected = PLAIN.attend(queries, keys, values, start, window, dims**-0.5, sinks)
    found = attention.attend(queries, keys, values, start, window, dims**-0.5, sinks)
    # An error e in a score changes its share by a factor exp(e); scores are sums of `dims` products of size 1.
    assert worst_row(found, expected) < 16 * EPS * np.sqrt(dims)


@pytest.mark.parametrize("name", [kind.name for kind in ISAS if runs_here(kind)])
def test_attention_with_every_instruction_set(name: str, rng: np.random.Generator) -> None:
    """Rows, keys and dims that fill no tile, and values that are narrower than keys."""
    queries = rng.standard_normal((37, 8, 40)).astype(np.float32)
    keys = rng.standard_normal((2, 93, 40)).astype(np.float32)
    values = rng.standard_normal((2, 93, 24)).astype(np.float32)
    poison_unseen(keys, values, 75, 37, 50)
    padded = np.concatenate([values, np.zeros((2, 93, 16), np.float32)], -1)
    expected = PLAIN.attend(queries, keys, padded, 75, 50, 0.2)[..., :24]
    isa.use(name)
    try:
        found = attention.attend(queries, keys, values, 75, 50, 0.2)
        alone = attention.attend(queries[-1:], keys, values, 111, 50, 0.2)
    finally:
        isa.use()
    assert worst_row(found, expected) < 16 * EPS * np.sqrt(40)
    assert worst_row(alone, expected[-1:]) < 16 * EPS * np.sqrt(40)


def test_attention_to_far_apart_scores(rng: np.random.Generator) -> None:
    """Scores that rise and fall by hundreds from block to block leave neither NaN nor what has been outdone."""
    keys = np.zeros((1, 200, 16), np.float32)
    keys[0, :, 0] = 300 * np.sin(np.arange(200) / 9)
    values = rng.standard_normal((1, 200, 16)).astype(np.float32)
    queries = np.ones((20, 1, 16), np.float32)
    expected = PLAIN.attend(queries, keys, values, 180, None, 1.0)
    assert worst_row(attention.attend(queries, keys, values, 180, None, 1.0), expected) < 300 * 16 * EPS


def test_a_nan_in_a_key_is_seen(rng: np.random.Generator) -> None:
    keys, values = (rng.standard_normal((1, 8, 16)).astype(np.float32) for _ in range(2))
    keys[0, 2, 5] = np.nan
    queries = rng.standard_normal((4, 2, 16)).astype(np.float32)
    found = attention.attend(queries, keys, values, 0, None, 0.25)
    assert np.isfinite(found[:2]).all()
    assert np.isnan(found[2:]).all()


def poison_unseen(keys: np.ndarray, values: np.ndarray, start: int, n_tokens: int, window: int | None) -> None:
    """NaN in every slot that no query may look at."""
    first = 0 if window is None else max(0, start - window + 1)
    unseen = np.ones(keys.shape[1], bool)
    unseen[np.arange(first, start + n_tokens) % keys.shape[1]] = False
    keys[:, unseen] = np.nan
    values[:, unseen] = np.nan


def test_many_queries_equal_one_at_a_time(rng: np.random.Generator) -> None:
    queries = rng.standard_normal((40, 4, 64)).astype(np.float32)
    keys, values = (rng.standard_normal((2, 64, 64)).astype(np.float32) for _ in range(2))
    together = attention.attend(queries, keys, values, 10, None, 0.125)
    alone = [attention.attend(queries[t : t + 1], keys, values, 10 + t, None, 0.125) for t in range(40)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=0, atol=2e-6)


def test_a_wide_score_is_no_overflow(rng: np.random.Generator) -> None:
    queries, keys = np.full((2, 1, 16), 50, np.float32), np.full((1, 4, 16), 50, np.float32)
    keys[0, 0] *= -1
    values = rng.standard_normal((1, 4, 16)).astype(np.float32)
    for n_tokens in (1, 2):
        found = attention.attend(queries[:n_tokens], keys, values, 2, None, 1.0)
        np.testing.assert_allclose(found[0, 0], values[0, 1:3].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("window", [None, 64])
def test_a_long_prompt_needs_little_memory(window: int | None) -> None:
    n_tokens, dims = 4096, 16
    queries = np.ones((n_tokens, 4, dims), np.float32)
    store = np.ones((1, n_tokens, dims), np.float32)
    attention.attend(queries[:2], store, store, 0, window, 1.0)
    tracemalloc.start()
    found = attention.attend(queries, store, store, 0, window, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)
    all_scores = 4 * n_tokens * n_tokens * 4
    assert peak < all_scores / 12


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize("aligned", [True, False])
def test_linear_with_plain_weights(dtype: str, n_tokens: int, aligned: bool, rng: np.random.Generator) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    weight = as_stored(rng.standard_normal((3000, 200)).astype(kind), aligned)
    x = rng.standard_normal((n_tokens, 200)).astype(np.float32)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    assert worst_row(matrices.linear(x, weight, "exact"), expected) < 4 * EPS * np.sqrt(200)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("aligned", [True, False])
def test_rows_of_a_plain_embedding_are_exact(dtype: str, aligned: bool, rng: np.random.Generator) -> None:
    import ml_dtypes

    weight = as_stored(rng.standard_normal((50, 64)).astype(getattr(ml_dtypes, dtype, dtype)), aligned)
    found = matrices.embed(weight, [3, 3, 49, 0])
    assert found.dtype == np.float32
    assert np.array_equal(found, weight.astype(np.float32)[[3, 3, 49, 0]])


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_a_packed_embedding(mode: str, dtype: str, rng: np.random.Generator) -> None:
    import ml_dtypes

    fmt = Format.resolve(mode)
    whole = rng.standard_normal((50, 128)).astype(getattr(ml_dtypes, dtype, dtype))
    packed = Packed(*quantize(whole, fmt), fmt.bits, fmt.group_size, fmt.mode)
    expected = dequantize_f64(packed.codes, packed.scales, packed.biases, fmt)[[7, 0, 7]]
    found = matrices.embed(packed, [7, 0, 7])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=4 * EPS, atol=4 * EPS)


@pytest.mark.parametrize("bits", AFFINE_BITS)
@pytest.mark.parametrize("group_size", AFFINE_GROUP_SIZES)
def test_rows_of_every_affine_format(bits: int, group_size: int, rng: np.random.Generator) -> None:
    """Codes that straddle two words too; one rounding for the product, and one for the sum."""
    fmt = Format.resolve("affine", bits, group_size)
    packed = Packed(*quantize(rng.standard_normal((9, 256), np.float32), fmt), bits, group_size, "affine")
    assert packed.biases is not None
    expected = dequantize(packed.codes, packed.scales, packed.biases, fmt, np.float32)
    assert np.array_equal(matrices.embed(packed, [8, 0, 8]), expected[[8, 0, 8]])
    stack = Packed(*(part.reshape(3, 3, -1) for part in (packed.codes, packed.scales, packed.biases)), bits, group_size)
    assert np.array_equal(matrices.dense_part(stack, 1), expected[3:6])


def as_stored(weight: np.ndarray, aligned: bool) -> np.ndarray:
    """The same numbers, read-only, at an address as a mapped file may have it."""
    raw = np.frombuffer(bytes(1 - aligned) + weight.tobytes(), np.uint8, offset=1 - aligned)
    stored = np.ndarray(weight.shape, weight.dtype, buffer=raw)
    assert aligned or weight.dtype.itemsize == 1 or not stored.flags.aligned
    return stored


def test_clip(rng: np.random.Generator) -> None:
    x = rng.standard_normal((5, 3, 16)).astype(np.float32)
    found = elementwise.clip(x.copy(), 0.5)
    assert found.dtype == np.float32
    assert np.array_equal(found, PLAIN.clip(x, np.float32(0.5)))
