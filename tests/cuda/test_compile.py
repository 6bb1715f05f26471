"""Every kernel compiles for GPUs of NVIDIA's and AMD's, whether there is one here or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_every_kernel_compiles(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_ahead.py"), "hopper", "cdna3"],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert (result.returncode, result.stdout) == (0, ""), result.stderr


def test_every_kernel_is_among_those_that_are_compiled() -> None:
    folder = Path(__file__).resolve().parents[2] / "src" / "coterie" / "backends" / "cuda" / "kernels"
    listed = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("compile_*.py"))
    launched = [
        line.split("(")[0].removeprefix("def ")
        for path in sorted(folder.glob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    ]
    assert launched
    assert [name for name in launched if f".{name}," not in listed] == []
