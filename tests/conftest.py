"""What every test shares: the repository's root, a seeded generator, and skips that say why."""

import os
import shutil
import subprocess
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@cache
def _has_cuda() -> bool:
    """Asked of the driver's own tool: importing PyTorch for a skip would cost every run two seconds."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).returncode == 0


if not _has_cuda():
    # Triton asks once, when it is imported, and any test may import it: so this stands here and not in tests/cuda.
    os.environ.setdefault("TRITON_INTERPRET", "1")


os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take three quarters of a GPU's memory


@cache
def _has_metal() -> bool:
    """MLX is asked only where it can have a GPU: importing it costs time."""
    if sys.platform != "darwin":
        return False
    mx = pytest.importorskip("mlx.core")
    return bool(mx.metal.is_available())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `cuda` where there is no NVIDIA GPU, those marked `metal` where there is none of Apple's."""
    for item in items:
        if item.get_closest_marker("cuda") and not _has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU; nvidia-smi lists none here"))
        if item.get_closest_marker("metal") and not _has_metal():
            item.add_marker(pytest.mark.skip(reason="needs a GPU of Apple's; MLX has none here"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return ROOT


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with no GPU, where nobody has asked for the interpreter that stands in for one here."""
    cuda = pytest.importorskip("coterie.backends.cuda")
    from coterie.errors import BackendUnavailableError
    from coterie.ops import dispatch

    def refuse() -> None:
        raise BackendUnavailableError("the GPU cannot be used (there is none)")

    monkeypatch.setattr(cuda, "check_machine", refuse)
    monkeypatch.delitem(dispatch._MODULES, "cuda", raising=False)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: the same numbers in every run and in any order of tests."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
