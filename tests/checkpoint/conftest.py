"""What the tests of checkpoints share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def open_files() -> Callable[[], int]:
    """Counts the files and maps of safetensors that this process holds (always 0 where the system does not tell)."""

    def count() -> int:
        maps = Path("/proc/self/maps")
        if not maps.exists():
            return 0
        return len(os.listdir("/proc/self/fd")) + maps.read_text().count(".safetensors")

    return count
