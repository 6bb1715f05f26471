"""A safetensors file, mapped and validated once; its arrays are views of the mapped bytes.

In: a path. Out: read-only NumPy arrays without a copy, whatever their alignment; bfloat16 and fp8 through ml_dtypes.
Refused: everything that `header.py` names, and anything but a regular file.

A map has one danger that no check removes: if another program shortens the file *in place*, or the disk fails beneath
it, touching the lost pages ends the process (SIGBUS) instead of raising. Writers that replace by rename, as this
library and the hub's client do, are harmless: the map keeps the old file. `array` and `check_unchanged` look at the
file again and raise when it has changed.
"""

import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from coterie.checkpoint import files
from coterie.checkpoint.files import opened, reading
from coterie.checkpoint.header import TensorInfo, header_length, parse_header
from coterie.errors import CheckpointError

_FIRST = 256

Fingerprint = tuple[int, int, int, int]
"""Device, inode, size and time of the last change: what tells one state of a file from another."""


class SafetensorsFile:
    """The tensors of one file. `tensors` maps names to where they lie; `array` gives their values."""

    def __init__(self, path: Path) -> None:
        """Open, validate and map `path`; `CheckpointError` names the first thing that is wrong. Leaves nothing open."""
        self.path = path
        with opened(path) as file:
            self.fingerprint = fingerprint(os.fstat(file.fileno()))
            size = self.fingerprint[2]
            self.tensors, self.metadata = _read_header(file, size, path)
            with reading(path):
                self._map: mmap.mmap | None = files.disk.map(file)
        if len(self._map) != size:
            self.close()
            raise changed(path)

    def array(self, name: str) -> np.ndarray:
        """The tensor `name` [its shape] as a read-only view; it keeps the map alive for as long as it lives."""
        info = self.tensors[name]
        if info.nbytes == 0:
            empty = np.empty(info.shape, info.dtype)
            empty.flags.writeable = False
            return empty
        mapped = self._mapped()
        if mapped.size() != self.fingerprint[2]:
            raise changed(self.path)
        return np.ndarray(info.shape, info.dtype, buffer=mapped, offset=info.begin)

    def check_unchanged(self) -> None:
        """`CheckpointError` if the file at `path` is no longer the one that was opened."""
        with reading(self.path):
            now = fingerprint(os.stat(self.path))
        if now != self.fingerprint:
            raise changed(self.path)

    def close(self) -> None:
        """Give the map back; arrays that were handed out stay valid and keep it alive on their own."""
        self._map = None

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            raise CheckpointError(f"{self.path}: the checkpoint is closed; open it again", code="closed")
        return self._map

    def __enter__(self) -> "SafetensorsFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def fingerprint(status: os.stat_result) -> Fingerprint:
    """What must stay the same while a file is in use."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    what = str(path)
    with reading(path):
        first = files.disk.read_at(file, 0, _FIRST)
    if len(first) < min(size, _FIRST):
        raise changed(path)
    length = header_length(first, size, what)
    with reading(path):
        header = files.disk.read_at(file, 8, length)
    if len(header) != length:
        raise changed(path)
    return parse_header(header, size, what)


def changed(path: Path) -> CheckpointError:
    """The error for a file that another program cut, replaced or rewrote while it was in use."""
    return CheckpointError(
        f"{path}: found a file that was changed or replaced while it was open, expected it to stay as it was: "
        "stop whatever writes to it, then load it again",
        code="file_changed",
    )
