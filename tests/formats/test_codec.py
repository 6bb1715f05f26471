"""The codecs against mx.quantize and mx.dequantize of the installed mlx: byte for byte, every format, every input
dtype.
"""

import numpy as np
import pytest

from coterie.arrays import FLOAT_DTYPES, as_numpy, bfloat16, from_numpy
from coterie.errors import ArgumentError, NumericError
from coterie.formats import AFFINE_BITS, AFFINE_GROUP_SIZES, Format, codec, microscaling

mx = pytest.importorskip("mlx.core")

FORMATS = [Format.resolve("affine", bits, group) for bits in AFFINE_BITS for group in AFFINE_GROUP_SIZES] + [
    Format.resolve(mode) for mode in ("mxfp4", "mxfp8", "nvfp4")
]
MX_DTYPES = dict(zip(FLOAT_DTYPES, (mx.float32, mx.float16, mx.bfloat16), strict=True))


def mlx_quantize(w: np.ndarray, fmt: Format) -> list[np.ndarray]:
    parts = mx.quantize(from_numpy(w, "mlx"), group_size=fmt.group_size, bits=fmt.bits, mode=fmt.mode)
    return [as_numpy(part) for part in parts]


def hostile_matrix(dtype: np.dtype, n_rows: int = 160) -> np.ndarray:
    """Rows over 40 binades, and rows that are constant, zero, signed zeros, one-sided, on ties, on powers of two,
    tiny, huge.
    """
    rng = np.random.default_rng(7)
    w = rng.standard_normal((n_rows, 256)) * np.exp(rng.uniform(-20, 9, (n_rows, 1)))
    w[0], w[1], w[2], w[3] = 0, 3, -2.5, np.where(np.arange(256) % 7, 0.0, -0.0)
    w[4], w[5] = np.abs(w[4]), -np.abs(w[5])
    w[6], w[7] = rng.integers(-12, 13, 256) / 4, rng.integers(-8, 8, 256)
    w[8] = 2.0 ** rng.integers(-14, 14, 256)
    w[9] = rng.integers(-448, 449, 256)
    w[10] = 1e-9 * rng.standard_normal(256)
    w[11] = 3e-8 * rng.standard_normal(256)
    w[12] = np.where(np.arange(256) % 32 == 5, -40.0, 1e-6)
    w[13] = 3e4 * rng.uniform(-1, 1, 256)
    w[14] = 6 * 2.0 ** rng.integers(-9, 9, 256) * (1 + rng.integers(-2, 3, 256) * 2.0**-8)
    if dtype != np.float16:
        w[15], w[16] = 1e-30 * rng.standard_normal(256), 1e37 * rng.uniform(-1, 1, 256)
    return np.clip(w, -6e4 if dtype == np.float16 else -3e38, 3e4 if dtype == np.float16 else 3e38).astype(dtype)


def assert_same_bytes(found: np.ndarray | None, expected: np.ndarray) -> None:
    assert found is not None
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if found.tobytes() != expected.tobytes():
        rows = np.flatnonzero((found != expected).reshape(-1, found.shape[-1]).any(-1))
        pytest.fail(f"{len(rows)} rows differ, the first are {rows[:8].tolist()}")


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_quantize_gives_the_bytes_of_mlx(fmt: Format, dtype: np.dtype) -> None:
    w = hostile_matrix(dtype)
    if fmt.bits == 1 and dtype == np.float16:
        w = w / dtype.type(2)
    if fmt.mode == "nvfp4":
        w = np.clip(w, -3e4, 3e4).astype(dtype)
    parts = codec.quantize(w, fmt)
    expected = mlx_quantize(w, fmt)
    assert (parts[2] is None) == (len(expected) == 2)
    for found, want in zip(parts, expected, strict=False):
        assert_same_bytes(found, want)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_dequantize_gives_the_bytes_of_mlx(fmt: Format, dtype: np.dtype) -> None:
    with np.errstate(under="ignore"):
        parts = mlx_quantize(hostile_matrix(dtype) / dtype.type(2), fmt)
    words = [from_numpy(part, "mlx") for part in parts]
    for out in (None, *FLOAT_DTYPES):
        options = {} if out is None else {"dtype": MX_DTYPES[out]}
        expected = as_numpy(mx.dequantize(*words, group_size=fmt.group_size, bits=fmt.bits, mode=fmt.mode, **options))
        found = codec.dequantize(parts[0], parts[1], parts[2] if len(parts) == 3 else None, fmt, out)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(40))
def test_random_shapes_and_leading_axes_agree_with_mlx(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fmt, dtype = FORMATS[rng.integers(len(FORMATS))], FLOAT_DTYPES[rng.integers(3)]
    leading = tuple(rng.integers(1, 5, rng.integers(1, 5)))
    shape = (*leading, int(fmt.group_size * 2 * rng.integers(1, 4)))
    w = (rng.standard_normal(shape) * 10.0 ** rng.integers(-4, 4)).astype(dtype)
    parts = codec.quantize(w, fmt)
    for found, want in zip(parts, mlx_quantize(w, fmt), strict=False):
        assert_same_bytes(found, want)
    expected = mx.dequantize(
        *(from_numpy(part, "mlx") for part in parts if part is not None),
        group_size=fmt.group_size,
        bits=fmt.bits,
        mode=fmt.mode,
    )
    assert_same_bytes(codec.dequantize(*parts, fmt), as_numpy(expected))


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
@pytest.mark.parametrize("dtype", [np.dtype(np.float16), bfloat16], ids=str)
def test_every_16_bit_magnitude_chooses_the_scale_of_mlx(mode: str, dtype: np.dtype) -> None:
    """All positive finite values as the largest of a group, above those whose scale E8M0 cannot hold."""
    end = np.array(np.inf, dtype).view(np.uint16)
    values = np.arange(1, end, dtype=np.uint16).view(dtype)
    if dtype == bfloat16:
        values = values[values.astype(np.float32) > 448 * 2.0**-127]
    w = np.zeros((len(values), 32), dtype)
    w[:, 9] = values
    fmt = Format.resolve(mode)
    for found, want in zip(codec.quantize(w, fmt), mlx_quantize(w, fmt), strict=False):
        assert_same_bytes(found, want)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
def test_f32_magnitudes_around_every_scale_border_choose_the_scale_of_mlx(mode: str) -> None:
    largest = np.float32(6 if mode == "mxfp4" else 448)
    borders = np.ldexp(largest, np.arange(-126, 119)).astype(np.float32)
    values = (borders.view(np.int32)[:, None] + np.arange(-20, 21, dtype=np.int32)).view(np.float32).ravel()
    w = np.zeros((len(values), 32), np.float32)
    w[:, 0] = -values
    fmt = Format.resolve(mode)
    for found, want in zip(codec.quantize(w, fmt), mlx_quantize(w, fmt), strict=False):
        assert_same_bytes(found, want)


def test_every_code_on_every_rounding_border_is_the_code_of_mlx() -> None:
    """One group spans the format; the others stand on each midpoint of neighbours, and one ulp to either side."""
    for mode, top in (("mxfp4", 6.0), ("mxfp8", 448.0), ("nvfp4", 6.0)):
        fmt = Format.resolve(mode)
        table = np.unique(microscaling.code_values(fmt)[np.isfinite(microscaling.code_values(fmt))])
        middles = ((table[1:] + table[:-1]) / 2).astype(np.float32)
        points = np.concatenate(
            [middles, np.nextafter(middles, np.float32(1e9)), np.nextafter(middles, np.float32(-1e9))]
        )
        points = np.resize(points, (-(-len(points) // 15) * 2, 15))
        w = np.zeros((len(points), fmt.group_size), np.float32)
        w[:, 0], w[:, 1:16] = top, points
        for found, want in zip(codec.quantize(w, fmt), mlx_quantize(w, fmt), strict=False):
            assert_same_bytes(found, want)


def test_scales_below_the_range_of_e8m0_stay_at_its_end_instead_of_wrapping() -> None:
    fmt = Format.resolve("mxfp4")
    w = np.full((1, 32), 2.0**-129, np.float32)
    codes, scales, _ = codec.quantize(w, fmt)
    assert scales.tolist() == [[0]]
    assert codec.dequantize(codes, scales, None, fmt, np.float32).max() <= 2.0**-128
    wrapped = mx.dequantize(*mx.quantize(mx.full((1, 32), 1e-38), mode="mxfp4"), mode="mxfp4", dtype=mx.float32)
    assert not np.isfinite(as_numpy(wrapped)).all()


def test_nvfp4_saturates_far_beyond_its_largest_value_where_mlx_turns_to_zero() -> None:
    fmt = Format.resolve("nvfp4")
    w = np.full((2, 16), -1e37, np.float32)
    w[:, 8:] = 1e37
    found = codec.dequantize(*codec.quantize(w, fmt), fmt, np.float32)
    np.testing.assert_array_equal(found, np.sign(w) * 2688)
    assert (as_numpy(mx.dequantize(*map(mx.array, mlx_quantize(w, fmt)), mode="nvfp4").astype(mx.float32)) == 0).all()


@pytest.mark.parametrize("fmt", FORMATS[::4], ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(fmt: Format, bad: float) -> None:
    w = np.ones((3, 128), np.float32)
    w[1, 77] = bad
    with pytest.raises(NumericError, match="finite"):
        codec.quantize(w, fmt)


def test_ranges_that_overflow_are_refused() -> None:
    w = np.zeros((1, 64), np.float32)
    w[0, :2] = 3e38, -3e38
    with pytest.raises(NumericError, match="overflows float32"):
        codec.quantize(w, Format.resolve("affine"))
    half = np.zeros((1, 64), np.float16)
    half[0, :2] = 6e4, -6e4
    with pytest.raises(NumericError, match="overflow float16"):
        codec.quantize(half, Format.resolve("affine", 1))


@pytest.mark.parametrize(
    ("w", "found"),
    [
        (np.ones((2, 100), np.float32), "100 values"),
        (np.ones((2, 0), np.float32), "0 values"),
        (np.ones(64, np.float32), r"\[64\]"),
        (np.ones((2, 64), np.float64), "float64"),
        (np.ones((2, 64), np.int32), "int32"),
    ],
)
def test_matrices_that_cannot_be_quantised_are_refused_by_name(w: np.ndarray, found: str) -> None:
    with pytest.raises(ArgumentError, match=found):
        codec.quantize(w, Format.resolve("affine"))


def test_no_rows_and_strided_input() -> None:
    fmt = Format.resolve("affine", 3, 32)
    codes, scales, biases = codec.quantize(np.zeros((0, 5, 64), np.float32), fmt)
    assert (codes.shape, scales.shape, biases.shape) == ((0, 5, 6), (0, 5, 2), (0, 5, 2))  # type: ignore[union-attr]
    assert codec.dequantize(codes, scales, biases, fmt).shape == (0, 5, 64)
    base = np.random.default_rng(1).standard_normal((128, 12)).astype(np.float32)
    view = base.T[1::2, ::2]
    for found, want in zip(codec.quantize(view, fmt), codec.quantize(view.copy(), fmt), strict=True):
        assert_same_bytes(found, want)
    wide = codec.quantize(base.T, fmt)
    odd = [part[1::2, :] for part in wide]
    np.testing.assert_array_equal(codec.dequantize(*odd, fmt), codec.dequantize(*wide, fmt)[1::2])


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_float64_values_are_what_the_format_defines(fmt: Format) -> None:
    w = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)
    parts = codec.quantize(w, fmt)
    exact = codec.dequantize_f64(*parts, fmt)
    assert exact.dtype == np.float64
    rounded = codec.dequantize(*parts, fmt, np.float32)
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=2 * np.finfo(np.float32).eps * np.abs(w).max() * 2)
    if fmt.mode != "affine":
        np.testing.assert_array_equal(rounded, exact)
    elif fmt.bits > 1:
        assert (rounded != exact).any()
