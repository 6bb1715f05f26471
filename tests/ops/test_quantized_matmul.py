"""Products with quantised matrices: every format, dtype and kind against float64."""

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, FEW_FORMATS, FORMATS, KINDS, floats, give, pack, ready, take
from coterie.arrays import as_numpy
from coterie.errors import ArgumentError
from coterie.formats import Format, Packed
from coterie.ops import dequantize_reference, quantized_matmul_reference
from tolerance import assert_close, bound, split

WIDTHS = {16: 704, 32: 2112, 64: 704, 128: 2816}
"""K by group size: multiples of 64 or 256, not of 512."""


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_meets_its_reference(kind: str, dtype: str, fmt: Format, rng) -> None:
    ready(kind, "quantized_matmul")
    width = WIDTHS[fmt.group_size]
    packed = pack(floats(rng, (33, width), dtype, 0.05), fmt, kind)
    for n_rows in (1, 5):
        x = floats(rng, (n_rows, width), dtype)
        found = take(coterie.quantized_matmul(give(x, kind), packed), kind, dtype)
        assert_close(found, quantized_matmul_reference(x, packed), bound(dtype, width) + split(kind, 1))
        x = floats(rng, (n_rows, 33), dtype)
        found = take(coterie.quantized_matmul(give(x, kind), packed, transpose=False), kind, dtype)
        assert_close(found, quantized_matmul_reference(x, packed, False), bound(dtype, 33) + split(kind, 1))


@pytest.mark.parametrize("fmt", FEW_FORMATS, ids=str)
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_of_x_and_of_scales_are_promoted_as_in_mlx(kind: str, scale_dtype: str, fmt: Format, rng) -> None:
    ready(kind, "quantized_matmul")
    mx = pytest.importorskip("mlx.core")
    packed = pack(floats(rng, (7, 256)), fmt, kind, scale_dtype)
    theirs = pack(floats(rng, (7, 256)), fmt, "mlx", scale_dtype)
    for dtype in DTYPES:
        x = floats(rng, (3, 256), dtype)
        ones = mx.ones((3, 256), getattr(mx, dtype))
        expected = mx.quantized_matmul(
            ones, theirs.codes, theirs.scales, theirs.biases, True, fmt.group_size, fmt.bits, fmt.mode
        ).dtype
        name = str(expected).rpartition(".")[2]
        found = take(coterie.quantized_matmul(give(x, kind), packed), kind, name)
        assert_close(found, quantized_matmul_reference(x, packed), bound(name, 256) + split(kind, 1), may_be_exact=True)


@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 7, 8, 9, 16, 31, 33, 64, 65, 130])
@pytest.mark.parametrize("fmt", FEW_FORMATS[:4], ids=str)
@pytest.mark.parametrize("kind", ["numpy", "mlx"])
def test_every_number_of_rows_around_the_edges_of_tiles(kind: str, fmt: Format, n_rows: int, rng) -> None:
    ready(kind, "quantized_matmul")
    for n_out in (1, 15, 17, 40):
        # All positive: a single result must not be small by cancellation, as it is a whole row here.
        packed = pack(1 + np.abs(floats(rng, (n_out, 384))), fmt, kind)
        x = np.abs(floats(rng, (n_rows, 384)))
        found = take(coterie.quantized_matmul(give(x, kind), packed), kind, "float32")
        assert_close(found, quantized_matmul_reference(x, packed), bound("float32", 384) + split(kind, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize(
    ("x_lead", "w_lead"), [((2, 3), ()), ((3,), ()), ((), (4,)), ((4, 1), (4,)), ((2, 1, 3), (4, 1)), ((4, 5), (4,))]
)
def test_leading_axes_broadcast_as_in_matmul(kind: str, x_lead, w_lead, transpose: bool, rng) -> None:
    ready(kind, "quantized_matmul", "gather_qmm")
    fmt = Format.resolve("affine", 4, 32)
    packed = pack(floats(rng, (*w_lead, 40, 96)), fmt, kind)
    x = floats(rng, (*x_lead[:-1], *x_lead[-1:], 6, 96 if transpose else 40))
    if w_lead == (4,) and x_lead == (4, 5):
        x = x[:, 0]
    found = take(coterie.quantized_matmul(give(x, kind), packed, transpose=transpose), kind, "float32")
    assert_close(found, quantized_matmul_reference(x, packed, transpose), bound("float32", 96) + split(kind, 1))
    vector = x[(0,) * (x.ndim - 1)]
    found = take(coterie.quantized_matmul(give(vector, kind), packed, transpose=transpose), kind, "float32")
    assert_close(found, quantized_matmul_reference(vector, packed, transpose), bound("float32", 96) + split(kind, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fmt", FEW_FORMATS, ids=str)
def test_strided_and_offset_views_give_what_copies_give(kind: str, fmt: Format, rng) -> None:
    ready(kind, "quantized_matmul")
    whole = pack(floats(rng, (6, 40, 256)), fmt, kind)
    parts = [None if part is None else part[3, 5:35:3] for part in (whole.codes, whole.scales, whole.biases)]
    view = Packed(*parts, bits=fmt.bits, group_size=fmt.group_size, mode=fmt.mode)
    x = floats(rng, (9, 512))
    strided = give(x, kind)[1::2, 1::2]
    found = take(coterie.quantized_matmul(strided, view), kind, "float32")
    assert_close(
        found,
        x[1::2, 1::2].astype(float) @ dequantize_reference(whole)[3, 5:35:3].T,
        bound("float32", 256) + split(kind, 1),
    )


def test_numpy_views_that_are_not_aligned_work(rng) -> None:
    ready("numpy", "quantized_matmul")
    packed = pack(floats(rng, (8, 128)), Format.resolve("affine", 4, 32))

    def shifted(array: np.ndarray) -> np.ndarray:
        buffer = np.zeros(array.nbytes + 1, np.uint8)
        buffer[1:] = array.reshape(-1).view(np.uint8)
        return buffer[1:].view(array.dtype).reshape(array.shape)

    x = floats(rng, (2, 128))
    moved = Packed(shifted(packed.codes), shifted(packed.scales), shifted(packed.biases), bits=4, group_size=32)
    assert not moved.codes.flags.aligned
    found = coterie.quantized_matmul(shifted(x), moved)
    np.testing.assert_array_equal(found, coterie.quantized_matmul(x, packed))


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_packed_are_the_same_call(kind: str, rng) -> None:
    ready(kind, "quantized_matmul")
    packed = pack(floats(rng, (8, 128)), Format.resolve("affine", 5, 32), kind)
    x = give(floats(rng, (2, 128)), kind)
    in_parts = coterie.quantized_matmul(x, packed.codes, packed.scales, packed.biases, True, 32, 5, "affine")
    np.testing.assert_array_equal(as_numpy(in_parts), as_numpy(coterie.quantized_matmul(x, packed)))


def test_what_does_not_fit_is_refused_by_name(rng) -> None:
    packed = pack(floats(rng, (8, 128)), Format.resolve("affine", 4, 32))
    with pytest.raises(ArgumentError, match=r"last axis of x must be 128"):
        coterie.quantized_matmul(np.ones((2, 64), np.float32), packed)
    with pytest.raises(ArgumentError, match=r"transpose=False the last axis of x must be 8"):
        coterie.quantized_matmul(np.ones((2, 128), np.float32), packed, transpose=False)
    with pytest.raises(ArgumentError, match="x is float64"):
        coterie.quantized_matmul(np.ones((2, 128)), packed)
    with pytest.raises(ArgumentError, match="x is int32"):
        coterie.quantized_matmul(np.ones((2, 128), np.int32), packed)
    with pytest.raises(ArgumentError, match="scales are missing"):
        coterie.quantized_matmul(np.ones((2, 128), np.float32), packed.codes)
    with pytest.raises(ArgumentError, match="leave them out"):
        coterie.quantized_matmul(np.ones((2, 128), np.float32), packed, packed.scales)
    with pytest.raises(ArgumentError, match="leave them out"):
        coterie.quantized_matmul(np.ones((2, 128), np.float32), packed, bits=4)
    batch = pack(floats(rng, (3, 8, 128)), Format.resolve("affine", 4, 32))
    with pytest.raises(ArgumentError, match="do not broadcast"):
        coterie.quantized_matmul(np.ones((2, 5, 128), np.float32), batch)
    with pytest.raises(ArgumentError, match="last axis"):
        coterie.quantized_matmul(np.array(1, np.float32), packed)
