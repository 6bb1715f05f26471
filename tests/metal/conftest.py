"""Where the kernels run: as C++ on any machine with a compiler, and on a GPU of Apple's where there is one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> Path:
    """Compiled kernels stay in pytest's cache folder; their names are digests of everything that went in."""
    cache = request.config.cache
    return cache.mkdir("metal") if cache else request.getfixturevalue("tmp_path_factory").mktemp("metal")


@pytest.fixture
def emulator(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Kernels run as C++, and every call takes the way that it takes on a GPU."""
    pytest.importorskip("mlx.core")
    from coterie.backends.mlx.metal import launch
    from metal.emulator import COMPILER, Emulator

    if COMPILER is None:
        pytest.skip("needs GNU's g++ to compile the Metal kernels as C++; there is none on the path")
    emulator = Emulator(compiled)
    monkeypatch.setattr(launch, "run", emulator.run)
    monkeypatch.setattr(launch, "usable", lambda: True)
    launch.compiled.cache_clear()
    yield emulator
    launch.compiled.cache_clear()


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.metal)])
def engine(request: pytest.FixtureRequest) -> str:
    """The tests that ask for this run on the emulator, and once more on the GPU where there is one."""
    if request.param == "emulated":
        request.getfixturevalue("emulator")
    return str(request.param)
