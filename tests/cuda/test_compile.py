"""Every kernel compiles for GPUs of NVIDIA's and AMD's, whether there is one here or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

KERNELS = Path(__file__).resolve().parents[2] / "src" / "coterie" / "backends" / "cuda"

TARGETS = ["hopper", *(["cdna3"] if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9) else [])]
"""The compiler of Triton 3.6 for AMD's GPUs fails at pointers that a condition chooses; that of 3.9 does not."""


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_as_it_is_launched(target: str, tmp_path: Path) -> None:
    kernels = {
        line.split("(")[0].removeprefix("def "): path
        for path in KERNELS.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    for_hopper = {
        name
        for name, path in kernels.items()
        if path.parent.name in ("hopper", "single", "stream") or path.stem in ("halves", "pieces", "words")
    }
    assert len(for_hopper) == 10, sorted(for_hopper)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    compiled = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_ahead.py"), target],
        stdout=subprocess.PIPE, text=True, check=True, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert compiled.stdout.splitlines() == sorted(kernels.keys() - (set() if target == "hopper" else for_hopper))
