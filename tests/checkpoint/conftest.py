"""What the tests of checkpoints share."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def open_files(tmp_path: Path) -> Callable[[], int]:
    """Counts the files and maps below `tmp_path` that this process holds (always 0 where the system does not tell).

    Whatever other tests left behind may be closed at any moment, so nothing else is counted.
    """

    def count() -> int:
        maps = Path("/proc/self/maps")
        if not maps.exists():
            return 0
        opened = [_target(fd) for fd in os.listdir("/proc/self/fd")]
        return sum(target.startswith(f"{tmp_path}{os.sep}") for target in opened) + maps.read_text().count(
            f" {tmp_path}{os.sep}"
        )

    return count


def _target(fd: str) -> str:
    """What a descriptor stands for; "" for the one that the listing itself had open."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
