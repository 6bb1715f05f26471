"""Arrays of CuPy and JAX on a GPU through every operation; stand-ins share tensors where there is no GPU."""

import sys
from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES
from coterie.arrays import as_numpy, bfloat16, device_of, kind_of, numpy_as_torch
from coterie.errors import ArgumentError, UnsupportedError
from every_door import Give, calls
from foreign import CUDA, CupyArray, JaxArray, fake_cupy, fake_jax
from tensors import on
from tolerance import EPS, assert_close

pytest.importorskip("torch")

BOUND = {"float32": 64 * EPS["float32"], "float16": 2 * EPS["float16"], "bfloat16": 2 * EPS["bfloat16"]}
"""Two back ends, each with its own order of sums of at most 64 products and its own rounding of the result."""


@pytest.fixture(params=["cupy", "jax_cuda"])
def stand_in(request: pytest.FixtureRequest, doors: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Give]:
    """A kind, and how the stand-in of its library is given an array."""
    if request.param == "cupy":
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
        return "cupy", lambda array: CupyArray(on(doors, array))
    torch, from_dlpack = sys.modules["torch"], sys.modules["torch"].from_dlpack
    monkeypatch.setitem(sys.modules, "jax", fake_jax())
    monkeypatch.setattr(
        torch,
        "from_dlpack",
        lambda array: on(doors, array.values) if isinstance(array, JaxArray) else from_dlpack(array),
    )
    return "jax_cuda", lambda array: JaxArray(array.copy(), CUDA)


def check(kind: str, give: Give, dtype: str) -> int:
    """Compare every operation that the back end has with NumPy's; how many there were."""
    ours, n_compared = dict(calls(lambda array: array.copy(), dtype)), 0
    for name, call in calls(give, dtype):
        try:
            results = call()
        except UnsupportedError as refusal:
            assert f"the cuda back end has no {name}" in str(refusal)  # noqa: PT017
            continue
        n_compared += 1
        for found, expected in zip(results, ours[name](), strict=True):
            assert (kind_of(found), device_of(found)) == (kind, "cuda"), name
            assert found.dtype == expected.dtype, name
            found = as_numpy(found)
            if expected.dtype.kind == "u" or not expected.size:
                np.testing.assert_array_equal(found, expected, err_msg=name)
            else:
                assert_close(found, expected.astype(float), BOUND[expected.dtype.name], may_be_exact=True)
    return n_compared


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_operation_takes_them_and_gives_them_back(stand_in: tuple[str, Give], dtype: str) -> None:
    assert check(*stand_in, dtype) >= 9


def test_cupy_changes_in_place_and_jax_does_not(stand_in: tuple[str, Give]) -> None:
    kind, give = stand_in
    start, added = give(np.ones((4, 6), np.float32)), give(np.ones((4, 6), np.float32))
    total = coterie.accumulate(start, added, 2.0)
    assert np.asarray(as_numpy(total)).tolist() == [[3.0] * 6] * 4
    assert (total is start) == (kind == "cupy")
    if kind == "cupy":
        with pytest.raises(ArgumentError, match="share memory"):
            coterie.accumulate(start, start, 1.0)


def test_they_do_not_mix(stand_in: tuple[str, Give], doors: str) -> None:
    kind, give = stand_in
    ones = np.ones(8, np.float32)
    with pytest.raises(
        ArgumentError, match=f"gate is {'cupy' if kind == 'cupy' else 'jax on cuda'}, up is torch on cuda"
    ):
        coterie.glu(give(ones), on(doors, ones))
    elsewhere = give(ones)
    elsewhere.device = "another"
    with pytest.raises(ArgumentError, match=r"more than one GPU in one call.*is on another; move them to one"):
        coterie.glu(give(ones), elsewhere)


def test_the_stand_ins_are_as_strict_as_the_libraries() -> None:
    torch = pytest.importorskip("torch")
    narrow = numpy_as_torch(np.ones(8, bfloat16))
    with pytest.raises(BufferError):
        torch.from_dlpack(CupyArray(narrow))
    with pytest.raises(NotImplementedError):
        fake_cupy().from_dlpack(narrow)
    with pytest.raises(AssertionError, match="not copied to the host"):
        np.asarray(JaxArray(np.ones(8, np.float32), CUDA))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_itself(dtype: str) -> None:
    cupy = pytest.importorskip("cupy")

    def give(array: np.ndarray) -> Any:
        if array.dtype != bfloat16:
            return cupy.asarray(array)
        return cupy.asarray(array.view(np.int16)).view(bfloat16)

    assert check("cupy", give, dtype) >= 9
    array = give(np.ones(8, np.float32))
    pointer = array.data.ptr
    coterie.accumulate(array, give(np.ones(8, np.float32)), 1.0)
    assert (array.data.ptr, array.tolist()) == (pointer, [2.0] * 8)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_jax_itself_on_a_gpu(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    jax = pytest.importorskip("jax")
    try:
        gpu = jax.devices("gpu")[0]
    except RuntimeError as reason:
        pytest.skip(f"this JAX has no GPU: {reason}")
    assert check("jax_cuda", lambda array: jax.device_put(array.copy(), gpu), dtype) >= 9
