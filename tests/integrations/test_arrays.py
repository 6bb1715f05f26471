"""Arrays of other libraries: JAX through DLPack, without a copy; what is not known is refused with a way out."""

import numpy as np
import pytest

import coterie
from coterie.errors import ArgumentError


class Foreign:
    """An array of another library, which speaks DLPack."""

    def __init__(self, array: np.ndarray, device: int) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0


@pytest.mark.parametrize(("device", "words"), [(1, r"numpy\.from_dlpack"), (2, r"torch\.from_dlpack")])
def test_another_librarys_array_is_refused_with_a_way_out(rng: np.random.Generator, device: int, words: str) -> None:
    gate = Foreign(rng.standard_normal((3, 8), np.float32), device)
    with pytest.raises(ArgumentError, match=words):
        coterie.glu(gate, gate)


def test_the_way_out_shares_memory(rng: np.random.Generator) -> None:
    values = rng.standard_normal((3, 8), np.float32)
    seen = np.from_dlpack(Foreign(values, 1))
    assert np.shares_memory(seen, values)
    assert np.array_equal(coterie.glu(seen, seen), coterie.glu(values, values))


def test_jax_arrays_through_dlpack(rng: np.random.Generator) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed; it is no dependency of the tests")
    values = rng.standard_normal((3, 8), np.float32)
    array = jax.numpy.asarray(values)
    with pytest.raises(ArgumentError, match=r"numpy\.from_dlpack"):
        coterie.glu(array, array)
    seen = np.from_dlpack(array)
    assert seen.ctypes.data == array.unsafe_buffer_pointer()
    back = jax.dlpack.from_dlpack(coterie.glu(seen, seen))
    assert np.array_equal(np.asarray(back), coterie.glu(values, values))
