"""Nothing outside of the arrays is read or written: they end where the next page may not be touched."""

import ctypes
import mmap

import numpy as np
import pytest

from coterie.backends.cpu import isa, products
from coterie.formats import Format, Packed
from cpu.cases import FORMATS, SETS, exact, packed_of
from tolerance import assert_close, bound

PAGE = mmap.PAGESIZE


class Guarded:
    """A copy of an array at the very end of its pages, with a page behind them that faults when it is touched."""

    def __init__(self, array: np.ndarray) -> None:
        size = -(-array.nbytes // PAGE) * PAGE
        self._map = mmap.mmap(-1, size + PAGE)
        view = np.frombuffer(self._map, np.uint8)
        start = size - array.nbytes
        self.array = view[start:size].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        libc = ctypes.CDLL(None, use_errno=True)
        result = libc.mprotect(ctypes.c_void_p(view.ctypes.data + size), ctypes.c_size_t(PAGE), 0)
        assert result == 0, ctypes.get_errno()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_packed_rows_end_at_a_forbidden_page(name: str, fmt: Format) -> None:
    rng = np.random.default_rng(3)
    isa.use(name)
    try:
        for n_groups in (1, 3):
            packed = packed_of(rng, (9, n_groups * fmt.group_size), fmt)
            parts = [
                part if part is None else Guarded(part).array for part in (packed.codes, packed.scales, packed.biases)
            ]
            guarded = Packed(parts[0], parts[1], parts[2], fmt.bits, fmt.group_size, fmt.mode)
            weights = exact(packed)
            for n_tokens in (1, 5):
                x = Guarded(rng.standard_normal((n_tokens, weights.shape[1])).astype(np.float32)).array
                found = products.quantized_matmul(x, guarded, True)
                assert_close(found, x.astype(np.float64) @ weights.T, bound("float32", weights.shape[1]))
    finally:
        isa.use()


def test_rows_at_any_address() -> None:
    rng = np.random.default_rng(4)
    fmt = Format.resolve("affine", 4, 64)
    packed = packed_of(rng, (16, 192), fmt)
    expected = products.quantized_matmul(np.ones((2, 192), np.float32), packed, True)
    for offset in (1, 2, 3, 7):
        parts = []
        for part in (packed.codes, packed.scales, packed.biases):
            memory = np.zeros(part.nbytes + offset, np.uint8)
            shifted = np.frombuffer(memory, part.dtype, part.size, offset).reshape(part.shape)
            np.copyto(shifted, part)
            assert not shifted.flags.aligned
            parts.append(shifted)
        found = products.quantized_matmul(np.ones((2, 192), np.float32), Packed(*parts, 4, 64), True)
        np.testing.assert_array_equal(found, expected)
