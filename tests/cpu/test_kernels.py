"""The product kernels against float64 for every instruction set that this machine runs, around every tile's edge."""

from collections.abc import Iterator

import numpy as np
import pytest

from coterie.arrays import bfloat16
from coterie.backends.cpu import isa, pool, products
from coterie.backends.cpu.product import MAX_ROWS, MAX_TOKENS
from coterie.formats import AFFINE_BITS, Format, Packed
from cpu.cases import FORMATS, SETS, exact, packed_of
from tolerance import assert_close, bound


@pytest.fixture(params=SETS)
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    isa.use(request.param)
    yield request.param
    isa.use()


def check(x: np.ndarray, packed: Packed) -> None:
    found = products.quantized_matmul(x, packed, True)
    assert_close(found, x.astype(np.float64) @ exact(packed).T, bound("float32", x.shape[1]))


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_format_with_few_and_many_tokens(fmt: Format) -> None:
    rng = np.random.default_rng(7)
    for n_inputs in (fmt.group_size * 3, 640):
        packed = packed_of(rng, (19, n_inputs), fmt)
        for n_tokens in (1, 3, 4, 5, 11):
            check(rng.standard_normal((n_tokens, n_inputs)).astype(np.float32), packed)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16], ids=["f32", "f16", "bf16"])
def test_every_dtype_of_scales(dtype: np.dtype) -> None:
    rng = np.random.default_rng(8)
    for fmt in (Format.resolve("affine", 4, 64), Format.resolve("affine", 3, 32)):
        packed = packed_of(rng, (33, 704), fmt, dtype)
        for n_tokens in (1, 9):
            check(rng.standard_normal((n_tokens, 704)).astype(np.float32), packed)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("n_inputs", [32, 64, 96, 480, 512, 544, 704, 2112, 2816])
def test_row_lengths_around_blocks_and_panels(n_inputs: int) -> None:
    rng = np.random.default_rng(9)
    packed = packed_of(rng, (17, n_inputs), Format.resolve("affine", 4, 32))
    for n_tokens in (1, 7):
        check(rng.standard_normal((n_tokens, n_inputs)).astype(np.float32), packed)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 15, 16, 17, MAX_ROWS - 1, MAX_ROWS, MAX_ROWS + 1, 2 * MAX_ROWS + 3])
def test_row_counts_around_tiles_and_units(n_rows: int) -> None:
    rng = np.random.default_rng(10)
    packed = packed_of(rng, (n_rows, 96), Format.resolve("affine", 4, 32))
    for n_tokens in (1, 6):
        # Activations that resemble a weight row: a result that stands alone must not be small by accident.
        x = rng.standard_normal((n_tokens, 96)) + 20 * exact(packed)[0]
        check(x.astype(np.float32), packed)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(
    "n_tokens", [0, 1, 2, 3, 4, 5, 6, 7, MAX_TOKENS - 1, MAX_TOKENS, MAX_TOKENS + 1, 2 * MAX_TOKENS + 5]
)
def test_token_counts_around_tiles_and_passes(n_tokens: int) -> None:
    rng = np.random.default_rng(11)
    packed = packed_of(rng, (21, 128), Format.resolve("affine", 4, 64))
    x = rng.standard_normal((n_tokens, 128)).astype(np.float32)
    if n_tokens:
        check(x, packed)
    else:
        assert products.quantized_matmul(x, packed, True).shape == (0, 21)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("n_inputs", [1, 3, 15, 16, 17, 100])
def test_plain_matrices_of_any_length(dtype: np.dtype, n_inputs: int) -> None:
    rng = np.random.default_rng(12)
    weight = rng.standard_normal((13, n_inputs)).astype(dtype)
    for n_tokens in (1, 6):
        x = rng.standard_normal((n_tokens, n_inputs)).astype(np.float32)
        every = np.zeros(n_tokens, np.uint32)
        found = products.gather_mm(x[:, None], weight[None].swapaxes(1, 2), np.arange(n_tokens), every, False)[:, 0]
        reference = x.astype(np.float64) @ weight.astype(np.float64).T
        assert_close(found, reference, bound("float32", n_inputs), may_be_exact=n_inputs < 4)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("fmt", FORMATS[::2], ids=str)
def test_columns(fmt: Format) -> None:
    rng = np.random.default_rng(13)
    packed = packed_of(rng, (23, fmt.group_size * 5), fmt)
    x = rng.standard_normal((3, 23)).astype(np.float32)
    found = products.quantized_matmul(x, packed, False)
    assert_close(found, x.astype(np.float64) @ exact(packed), bound("float32", 23))


@pytest.mark.usefixtures("instructions")
def test_extreme_codes_of_every_width() -> None:
    """All ones: the top bit of the last field must not be read as a sign."""
    for bits in AFFINE_BITS:
        codes = np.full((2, 128 * bits // 32), 0xFFFFFFFF, np.uint32)
        packed = Packed(codes, np.full((2, 2), 0.5, np.float32), np.full((2, 2), -1, np.float32), bits, 64)
        for n_tokens in (1, 5):
            found = products.quantized_matmul(np.ones((n_tokens, 128), np.float32), packed, True)
            np.testing.assert_array_equal(found, 128 * (0.5 * (2**bits - 1) - 1))


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
def test_scales_at_both_ends(mode: str) -> None:
    """E8M0 byte 0 is the subnormal 2^-127, 254 is 2^127."""
    fmt = Format.resolve(mode)
    code = 0x22222222 if fmt.bits == 4 else 0x38383838  # 1.0
    for byte in (0, 1, 127, 254):
        packed = Packed(np.full((1, fmt.words(32)), code, np.uint32), np.full((1, 1), byte, np.uint8), mode=mode)
        for n_tokens in (1, 5):
            x = np.zeros((n_tokens, 32), np.float32)
            x[:, 5] = 1
            found = products.quantized_matmul(x, packed, True)
            np.testing.assert_array_equal(found, np.float32(2.0 ** (byte - 127)))


def test_the_result_does_not_depend_on_threads_or_on_what_scratch_held() -> None:
    rng = np.random.default_rng(14)
    packed = packed_of(rng, (300, 320), Format.resolve("affine", 4, 64))
    few, many = (rng.standard_normal((n, 320)).astype(np.float32) for n in (2, 130))
    expected = [products.quantized_matmul(x, packed, True) for x in (few, many)]
    try:
        for n_threads in (1, 3, 5):
            pool.set_num_threads(n_threads)
            for octet in (0x7F, 0xFF):
                for x, wanted in zip((few, many), expected, strict=True):
                    products.quantized_matmul(x, packed, True)
                    for _, _, memory in pool.get_pool()._buffers.values():
                        memory[:] = octet
                    np.testing.assert_array_equal(products.quantized_matmul(x, packed, True), wanted)
    finally:
        pool.set_num_threads(None)
