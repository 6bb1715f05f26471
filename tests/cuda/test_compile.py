"""Every kernel compiles for GPUs of NVIDIA's and AMD's, whether there is one here or not."""

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")

KERNELS = Path(__file__).resolve().parents[2] / "src" / "coterie" / "backends" / "cuda"


def test_every_kernel_compiles_as_it_is_launched(compilers: dict[str, subprocess.Popen[str]]) -> None:
    kernels = {
        line.split("(")[0].removeprefix("def "): path
        for path in KERNELS.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    for_hopper = {
        name for name, path in kernels.items() if path.parent.name in ("hopper", "single") or path.stem == "halves"
    }
    assert len(for_hopper) == 6
    assert "hopper" in compilers
    for target, process in compilers.items():
        launched = kernels.keys() - (set() if target == "hopper" else for_hopper)
        assert process.communicate()[0].splitlines() == sorted(launched)
        assert process.returncode == 0
