"""Arrays of JAX through every operation, on the CPU; what no library is known for is refused with a way out."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, floats
from coterie.arrays import as_numpy, bfloat16, device_of, kind_of
from coterie.errors import ArgumentError
from every_door import calls
from foreign import CPU, JaxArray, fake_jax


class Foreign:
    """An array of a library that is not known, which speaks DLPack."""

    def __init__(self, array: np.ndarray, device: int) -> None:
        self._array, self._device = array, device

    def __dlpack__(self, **options):
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0


@pytest.mark.parametrize(("device", "words"), [(1, r"numpy\.from_dlpack"), (2, r"torch\.from_dlpack")])
def test_an_unknown_librarys_array_is_refused_with_a_way_out(rng: np.random.Generator, device: int, words: str) -> None:
    gate = Foreign(rng.standard_normal((3, 8), np.float32), device)
    with pytest.raises(ArgumentError, match=words):
        coterie.glu(gate, gate)


def test_the_way_out_shares_memory(rng: np.random.Generator) -> None:
    values = rng.standard_normal((3, 8), np.float32)
    seen = np.from_dlpack(Foreign(values, 1))
    assert np.shares_memory(seen, values)
    assert np.array_equal(coterie.glu(seen, seen), coterie.glu(values, values))


@pytest.fixture(params=["jax", "stand-in"])
def jax(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """JAX itself where it is installed, and a stand-in with the same interface."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "jax", fake_jax())
        return sys.modules["jax"]
    return pytest.importorskip("jax", reason="JAX is not installed; it is no dependency of the tests")


def on_cpu(jax: Any, array: np.ndarray) -> Any:
    return jax.device_put(array.copy(), jax.local_devices(backend="cpu")[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_takes_jax_and_gives_jax(jax: Any, dtype: str) -> None:
    """The same back end computes on the same numbers: the results are NumPy's, to the bit."""
    ours = dict(calls(lambda array: array.copy(), dtype))
    for name, call in calls(lambda array: on_cpu(jax, array), dtype):
        for found, expected in zip(call(), ours[name](), strict=True):
            assert (kind_of(found), device_of(found)) == ("jax", "cpu"), name
            assert found.dtype == expected.dtype, name
            np.testing.assert_array_equal(as_numpy(found), expected, err_msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_is_seen_without_a_copy(jax: Any, dtype: str, rng) -> None:
    array = on_cpu(jax, floats(rng, (64, 64), dtype))
    seen = as_numpy(array)
    assert seen.dtype.name == dtype
    assert not seen.flags.writeable
    address = array.values.ctypes.data if isinstance(array, JaxArray) else array.unsafe_buffer_pointer()
    assert seen.ctypes.data == address


def test_jax_arrays_do_not_change(jax: Any) -> None:
    start = on_cpu(jax, np.ones((2, 8), np.float32))
    for added in (start, on_cpu(jax, np.ones((2, 8), np.float32))):
        total = coterie.accumulate(start, added, 2.0)
        assert np.asarray(total).tolist() == [[3.0] * 8] * 2
    assert np.asarray(start).tolist() == [[1.0] * 8] * 2


def test_jax_does_not_mix_with_others(jax: Any) -> None:
    ones = np.ones((2, 8), np.float32)
    with pytest.raises(ArgumentError, match="gate is jax on the CPU, up is numpy"):
        coterie.glu(on_cpu(jax, ones), ones)


def test_what_has_no_numbers_yet_or_lies_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", fake_jax())

    class Elsewhere(JaxArray):
        def __dlpack_device__(self) -> tuple[int, int]:
            if self._device_type == 0:
                raise BufferError("__dlpack__ only supported for unsharded arrays.")
            return self._device_type, 0

    class Traced(JaxArray):
        def __getattribute__(self, name: str) -> Any:
            if name == "__dlpack_device__":
                raise AttributeError(name)
            return super().__getattribute__(name)

    ones = np.ones(8, np.float32)
    for array, words in (
        (Traced(ones), "outside of jax.jit"),
        (Elsewhere(ones, 0), "several devices.*jax.device_put"),
        (Elsewhere(ones, 7), "neither on the CPU nor on a GPU"),
    ):
        with pytest.raises(ArgumentError, match=words):
            coterie.glu(array, array)


def test_jax_itself_refuses_under_jit() -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed; it is no dependency of the tests")
    with pytest.raises(ArgumentError, match=r"outside of jax\.jit"):
        jax.jit(coterie.glu)(jax.numpy.ones(8), jax.numpy.ones(8))


def test_nothing_is_imported_for_an_array_that_is_here_already() -> None:
    code = (
        "import numpy as np, sys, coterie\n"
        "coterie.glu(np.ones(8, np.float32), np.ones(8, np.float32))\n"
        "print([name for name in ('torch', 'jax', 'cupy', 'mlx') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_stand_in_is_as_strict_as_jax() -> None:
    narrow = JaxArray(np.ones(8, bfloat16), CPU)
    with pytest.raises(BufferError):
        np.from_dlpack(narrow)
    with pytest.raises(ValueError, match="read-only"):
        np.from_dlpack(JaxArray(np.ones(8, np.float32)))[0] = 2
