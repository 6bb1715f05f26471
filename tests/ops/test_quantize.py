"""`quantize` and `dequantize` on every kind: the codec's bytes, which are MLX's, behind one door."""

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, FORMATS, KINDS, floats, give, ready, take
from coterie.arrays import as_numpy
from coterie.errors import ArgumentError, NumericError, UnsupportedError
from coterie.formats import Format, Packed, codec
from coterie.ops import dequantize_reference
from coterie.ops.dispatch import numpy_dtype


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gets_the_same_bytes(kind: str, dtype: str, fmt: Format, rng) -> None:
    ready(kind, "quantize", "dequantize")
    w = floats(rng, (2, 3, 256), dtype)
    parts = coterie.quantize(give(w, kind), fmt.group_size, fmt.bits, fmt.mode)
    expected = [part for part in codec.quantize(w, fmt) if part is not None]
    assert len(parts) == len(expected)
    for part, want in zip(parts, expected, strict=True):
        found = take(part, kind, want.dtype.name)
        assert found.shape == want.shape
        assert found.tobytes() == want.tobytes()
    for out in (None, *DTYPES):
        whole = (*expected, None)[:3]
        target = None if out is None else numpy_dtype(out)
        want = codec.dequantize(*whole, fmt, target)
        result = coterie.dequantize(*parts, group_size=fmt.group_size, bits=fmt.bits, mode=fmt.mode, dtype=out)
        np.testing.assert_array_equal(take(result, kind, want.dtype.name), want)


@pytest.mark.parametrize("kind", KINDS)
def test_what_mlx_gets_wrong_is_right_or_refused_for_every_kind(kind: str) -> None:
    ready(kind, "quantize")
    tiny = np.full((2, 32), 1e-38, np.float32)
    huge = np.full((2, 32), 1e37, np.float32)
    for w, mode in ((tiny, "mxfp4"), (tiny, "mxfp8"), (huge, "nvfp4")):
        parts = coterie.quantize(give(w, kind), mode=mode)
        for part, want in zip(parts, codec.quantize(w, Format.resolve(mode)), strict=False):
            np.testing.assert_array_equal(as_numpy(part), want)
    for bad in (np.nan, np.inf):
        for mode in ("affine", "mxfp4", "mxfp8", "nvfp4"):
            w = np.ones((2, 64), np.float32)
            w[1, 3] = bad
            with pytest.raises(NumericError, match="finite"):
                coterie.quantize(give(w, kind), mode=mode)
    one_row = coterie.quantize(give(np.full((1, 16), 6, np.float32), kind), mode="nvfp4")
    np.testing.assert_array_equal(as_numpy(coterie.dequantize(*one_row, mode="nvfp4", dtype="float32")), 6)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_strided_matrices(kind: str, rng) -> None:
    ready(kind, "quantize", "dequantize")
    codes, scales, biases = coterie.quantize(give(np.zeros((0, 3, 128), np.float16), kind))
    assert (tuple(codes.shape), tuple(scales.shape)) == ((0, 3, 16), (0, 3, 2))
    assert take(coterie.dequantize(codes, scales, biases), kind, "float16").shape == (0, 3, 128)
    w = floats(rng, (9, 256))
    parts = coterie.quantize(give(w, kind)[1::2, ::2])
    for part, want in zip(parts, codec.quantize(w[1::2, ::2], Format.resolve()), strict=True):
        np.testing.assert_array_equal(as_numpy(part), want)
    rows = [part[1:3] for part in parts]
    np.testing.assert_array_equal(as_numpy(coterie.dequantize(*rows)), as_numpy(coterie.dequantize(*parts))[1:3])


def test_dtype_objects_of_each_library_are_understood() -> None:
    torch, mx = pytest.importorskip("torch"), pytest.importorskip("mlx.core")
    ready("numpy", "dequantize")
    parts = codec.quantize(np.ones((1, 64), np.float32), Format.resolve())
    for dtype in (np.float16, np.dtype(np.float16), "float16", torch.float16, mx.float16):
        assert coterie.dequantize(*parts, dtype=dtype).dtype == np.float16
    for dtype in (np.float64, "int8", torch.float64, 16):
        with pytest.raises(ArgumentError, match="expected float32, float16 or bfloat16"):
            coterie.dequantize(*parts, dtype=dtype)


def test_the_reference_is_what_the_format_says() -> None:
    codes, scales, biases = codec.quantize(np.linspace(-1, 1, 64, dtype=np.float32)[None], Format.resolve())
    exact = dequantize_reference(Packed(codes, scales, biases))
    by_hand = [
        float(scales[0, 0]) * (int(codes[0, i // 8]) >> 4 * (i % 8) & 15) + float(biases[0, 0]) for i in range(64)
    ]
    np.testing.assert_array_equal(exact[0], by_hand)


def test_what_cannot_be_quantised_is_refused_by_name() -> None:
    ones = np.ones((2, 64), np.float32)
    with pytest.raises(UnsupportedError, match="global_scale"):
        coterie.quantize(ones, mode="nvfp4", global_scale=np.ones((), np.float32))
    with pytest.raises(ArgumentError, match="bits 7 does not exist"):
        coterie.quantize(ones, bits=7)
    with pytest.raises(ArgumentError, match="group_size 16 does not exist"):
        coterie.quantize(ones, 16)
    with pytest.raises(ArgumentError, match="mode 'fp4' is not known"):
        coterie.quantize(ones, mode="fp4")
    with pytest.raises(ArgumentError, match="float64"):
        coterie.quantize(ones.astype(np.float64))
    with pytest.raises(ArgumentError, match="96 values"):
        coterie.quantize(np.ones((2, 96), np.float32))
    codes, scales, biases = codec.quantize(ones, Format.resolve())
    with pytest.raises(ArgumentError, match="biases are missing"):
        coterie.dequantize(codes, scales)
    with pytest.raises(UnsupportedError, match="global_scale"):
        coterie.dequantize(codes, scales, biases, global_scale=np.ones((), np.float32))
