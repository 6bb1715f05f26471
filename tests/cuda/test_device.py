"""Whether there is a GPU, and what is said in one line where there is none that can be used."""

import contextlib
import os
import re
import subprocess
import sys

import pytest

from coterie.errors import BackendUnavailableError

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")


def test_without_the_interpreter_a_machine_without_a_gpu_says_why() -> None:
    code = (
        "import triton\n"
        "from coterie import backends\n"
        "reason = backends.available()['cuda']\n"
        "import torch\n"
        "print(torch.cuda.is_available(), reason)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    old = code.replace("import triton\n", "import triton\ntriton.__version__ = '3.2.0'\n", 1)
    for source, words in (
        (code, "PyTorch .* built for the CPU|the GPU cannot be used"),
        (old, "Triton 3.2.0 is too old"),
    ):
        shown = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, check=True, env=environment
        ).stdout.strip()
        has_gpu, _, reason = shown.partition(" ")
        assert "\n" not in reason
        assert re.search("None" if has_gpu == "True" and source is code else words, reason)


def test_each_obstacle_is_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda import device

    def driver_is_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update it.")

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(BackendUnavailableError, match=r"built for the CPU alone; install.*https://pytorch\.org"):
        device.check_machine()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", driver_is_old)
    with pytest.raises(BackendUnavailableError, match=r"\(The NVIDIA driver .* \(found version 11040\)\.\); look at"):
        device.check_machine()
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(
        BackendUnavailableError, match=r"Tesla V100 has compute capability 7\.0, expected 8\.0 or newer"
    ):
        device.check_machine()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    device.check_machine()


def test_nothing_is_collected_while_launches_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that goes meanwhile ends the recording."""
    import gc

    from coterie.backends.cuda import launch

    def fail() -> None:
        assert not gc.isenabled()
        raise RuntimeError("in between")

    monkeypatch.setattr(torch.cuda, "graph", lambda _graph, **_options: contextlib.nullcontext())
    for collects in (True, False):
        (gc.enable if collects else gc.disable)()
        try:
            with pytest.raises(RuntimeError, match="in between"), launch.recorded(None):  # type: ignore[arg-type]
                fail()
            assert gc.isenabled() == collects
        finally:
            gc.enable()
