"""Quantise and dequantise on a GPU: byte for byte what the codec of `coterie.formats` gives, in every format."""

import numpy as np
import pytest

from array_kinds import DTYPES, FORMATS, floats
from coterie.errors import NumericError
from coterie.formats import Format, Packed, codec
from coterie.ops.dispatch import numpy_dtype
from tensors import off, on, same_bits


def hostile(rng: np.random.Generator, dtype: str) -> np.ndarray:
    """[2, 7, 128]: constant groups, zeros of both signs, ties between codes, outliers, next to nothing."""
    w = floats(rng, (2, 7, 128)).astype(np.float32)
    w[0, 0, :64], w[0, 1], w[0, 2, ::2] = 0, 3.0, -0.0
    w[0, 3] = np.resize([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -6.0], 128)
    w[0, 4] *= 1e-4
    w[1, 0, 5], w[1, 1, 70] = 300, -300
    w[1, 2] = np.abs(w[1, 2])
    w[1, 3] = -np.abs(w[1, 3])
    w[1, 4] = 6e-8
    return w.astype(numpy_dtype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_quantize_gives_the_bytes_of_the_codec(device: str, fmt: Format, dtype: str, rng) -> None:
    from coterie.backends import cuda

    w = hostile(rng, dtype)
    for found, expected in zip(cuda.quantize(on(device, w), fmt), codec.quantize(w, fmt), strict=True):
        assert found is expected or same_bits(off(found), expected)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_dequantize_gives_the_bytes_of_the_codec(device: str, fmt: Format, rng) -> None:
    """Any bytes are codes, and any are scales of the small floats, NaN and infinity among them."""
    from coterie.backends import cuda

    codes = rng.integers(0, 2**32, (3, 5, fmt.words(384)), dtype=np.uint32)
    shape = (3, 5, fmt.n_groups(384))
    for scale_dtype in DTYPES if fmt.mode == "affine" else ("uint8",):
        if fmt.mode == "affine":
            scales, biases = floats(rng, shape, scale_dtype), floats(rng, shape, scale_dtype, 20)
            scales[0, 0, 0], biases[0, 0, 1] = 60000, -60000
        else:
            scales, biases = np.resize(rng.permutation(256).astype(np.uint8), shape), None
        parts = [None if part is None else on(device, part) for part in (codes, scales, biases)]
        packed = Packed(*parts, fmt.bits, fmt.group_size, fmt.mode)
        for target in DTYPES:
            found = off(cuda.dequantize(packed, cuda.tensors.dtype_of(target)))
            assert same_bits(found, codec.dequantize(codes, scales, biases, fmt, numpy_dtype(target))), target


@pytest.mark.parametrize(("mode", "bits"), [("affine", 4), ("affine", 1), ("mxfp4", 4), ("mxfp8", 8), ("nvfp4", 4)])
def test_what_cannot_be_quantised_is_refused_in_the_words_of_the_codec(device: str, mode: str, bits: int) -> None:
    from coterie.backends import cuda

    fmt = Format.resolve(mode, bits)
    bad = [np.nan, np.inf, -np.inf]
    for value in bad:
        w = np.ones((3, 128), np.float32)
        w[2, 5] = value
        with pytest.raises(NumericError, match="NaN"):
            cuda.quantize(on(device, w), fmt)
    if mode == "affine":
        w = np.array([[65504, -65504] * 64], np.float16)
        expected: NumericError | None = None
        try:
            codec.quantize(w, fmt)
        except NumericError as refusal:
            expected = refusal
        if expected is not None:
            with pytest.raises(NumericError, match="overflow float16"):
                cuda.quantize(on(device, w), fmt)


def test_a_large_matrix_is_quantised_in_parts(device: str, monkeypatch: pytest.MonkeyPatch, rng) -> None:
    from coterie.backends import cuda
    from coterie.backends.cuda import codecs

    fmt, w = Format.resolve("affine", 3, 32), floats(rng, (7, 96))
    monkeypatch.setattr(codecs, "_WEIGHTS_AT_ONCE", 192)
    for found, expected in zip(cuda.quantize(on(device, w), fmt), codec.quantize(w, fmt), strict=True):
        assert same_bits(off(found), expected)
