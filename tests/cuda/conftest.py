"""Where the kernels run: compiled on a GPU where there is one, else by Triton's interpreter on CPU tensors.

What the library allocates without setting it is poisoned first: nothing may depend on what stood there.
"""

import functools
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cuda.gluon_by_hand import ByHand


@pytest.fixture(scope="session")
def device() -> str:
    """The device of the tensors that a verb is given: "cuda", or "cpu" where Triton's interpreter runs the kernels."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return "cuda"
    from coterie.backends.cuda import launch

    assert launch.INTERPRETED.value, "Triton was imported before TRITON_INTERPRET was set: see tests/conftest.py"
    return "cpu"


@pytest.fixture
def doors(device: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The public doors take tensors on `device` as the kind "cuda", those on the CPU too where there is no GPU."""
    from coterie.arrays import kinds

    if device == "cpu":
        monkeypatch.setitem(kinds._KIND_OF_TENSOR, False, "cuda")
    return device


@pytest.fixture
def hopper(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels in Gluon are in use: compiled where the GPU is one for them, by hand where there is none."""
    import torch

    from coterie.backends.cuda import gluon

    if device == "cuda":
        if not gluon.serves(torch.device("cuda", torch.cuda.current_device())):
            pytest.skip("only Hopper GPUs have these kernels")
        return
    monkeypatch.setattr(gluon, "serves", lambda _device: True)
    for name, kernel in _by_hand().items():
        monkeypatch.setattr(gluon, name, kernel)


@functools.cache
def _by_hand() -> dict[str, ByHand]:
    modules = {
        "attend_prompt": "hopper.attend",
        "half_linear": "hopper.linear",
        "half_rows": "hopper.rows",
        "single_linear": "single.linear",
        "single_rows": "single.rows",
        "stream_rows": "stream.rows",
    }
    return {f"{name}_kernel": ByHand(module, f"{name}_kernel") for name, module in modules.items()}


@pytest.fixture(autouse=True)
def _as_on_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter computes with NumPy, which warns where a GPU does not, and cuts off where bfloat16 is rounded."""
    if device == "cuda":
        yield
        return
    import triton.language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl
    handle = interpreter.TensorHandle

    def rounding(self: Any, source: Any, target: Any) -> Any:
        pair = (source.dtype.scalar, target.scalar)
        if pair == (tl.float32, tl.bfloat16):
            return handle(source.data.astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16)
        if pair == (tl.bfloat16, tl.float32):
            return handle(source.data.view(ml_dtypes.bfloat16).astype(np.float32), tl.float32)
        return cast(self, source, target)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", rounding)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # Triton 3.6 makes integers of arrays of one element
        yield


@pytest.fixture(autouse=True)
def _prepared_once(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter prepares Triton's language anew for each function that a kernel calls, which is half of its time:
    here it does so once a launch.
    """
    if device == "cuda":
        return
    import triton.language as tl
    from triton.runtime import interpreter

    prepare, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    whole = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    inside: list[Any] = []

    def prepared(_function: Any) -> Any:
        if inside:
            return None
        inside.append(prepare(whole))
        return inside[0]

    def launched(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return launch(self, *arguments, **options)
        finally:
            inside.clear()

    monkeypatch.setattr(interpreter, "_patch_lang", prepared)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        torch.empty(0)  # PyTorch looks up once what makes tensors: it must know the functions behind those below

    def poisoned(allocate: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            tensor = allocate(*arguments, **options)
            if tensor.dtype == torch.uint32:
                tensor.view(torch.int32).fill_(0x5A5A5A5A)
            else:
                tensor.fill_(float("nan") if tensor.is_floating_point() else 0x5A)
            return tensor

        return run

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture
def fenced(_poisoned: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the library allocates stands between margins that nobody may write to, and that are no use to read."""
    torch = pytest.importorskip("torch")
    margin, mark, kept = 64, 0x5A, []

    def between_margins(allocate: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            like = allocate(*arguments, **{**options, "device": "meta"})
            if str(options.get("device")) == "meta":
                return like
            whole = allocate((like.numel() + 2 * margin,), **options)
            inside = whole[margin : margin + like.numel()]
            for outside in (whole[:margin], whole[margin + like.numel() :]):
                outside.view(torch.uint8).fill_(mark)
                kept.append(outside)
            return inside.view(like.shape)

        return run

    monkeypatch.setattr(torch, "empty", between_margins(torch.empty))
    monkeypatch.setattr(torch, "zeros", between_margins(torch.zeros))
    yield
    assert all((outside.view(torch.uint8) == mark).all() for outside in kept)
