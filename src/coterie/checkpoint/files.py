"""The one door to the file system: every read, map, write and rename of this room goes through `disk`.

Only regular files are opened, so a FIFO cannot hang a load and a device is never touched. Operating system errors
become `CheckpointError`s that name the file. Tests replace `disk` to make the N-th call fail.
"""

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from coterie.errors import CheckpointError


class Disk:
    """The calls that may fail; one method a call, so that a test can count and break them."""

    def open_read(self, path: Path) -> BinaryIO:
        """An unbuffered file; O_NONBLOCK so that a FIFO put there after the check cannot block the open."""
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        return os.fdopen(os.open(path, flags), "rb", buffering=0)

    def read_at(self, file: BinaryIO, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end of the file."""
        file.seek(offset)
        parts = []
        while size > 0:
            part = file.read(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def map(self, file: BinaryIO) -> mmap.mmap:
        """The whole file, read-only."""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def create(self, path: Path) -> BinaryIO:
        """A new file; an error if the name is taken."""
        return open(path, "xb", buffering=0)

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        """All of `data`."""
        rest = memoryview(data).cast("B")
        while rest.nbytes:
            rest = rest[file.write(rest) :]

    def sync(self, file: BinaryIO) -> None:
        """Down to the medium, so that a later rename never names a file whose content is still on its way."""
        os.fsync(file.fileno())

    def replace(self, source: Path, target: Path) -> None:
        """Atomic rename; the folder itself is synced so that the new name survives a power cut."""
        os.replace(source, target)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def remove(self, path: Path) -> None:
        """The file at `path` is gone afterwards, whether or not it was there."""
        path.unlink(missing_ok=True)


disk = Disk()


def show(value: object, limit: int = 80) -> str:
    """`value` for an error message: escaped, so that no file writes control characters to a terminal, and short."""
    text = ascii(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The regular file at `path`, open for reading; closed on every way out."""
    with reading(path):
        _expect_regular(path, os.stat(path).st_mode)
        file = disk.open_read(path)
    try:
        with reading(path):
            _expect_regular(path, os.fstat(file.fileno()).st_mode)
        yield file
    finally:
        file.close()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns an operating system error inside the block into a `CheckpointError` about `path`."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the file is not there; check the path", code="file_missing") from error
    except (OSError, ValueError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: reading failed ({error}); expected a readable file: check the disk and the permissions, "
            "then fetch the file again",
            code="read_error",
        ) from error


def read_whole(path: Path, limit: int) -> bytes:
    """The bytes of the regular file at `path`, at most `limit` of them; more is an error, not a cut."""
    with opened(path) as file, reading(path):
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise CheckpointError(f"{path}: found {size} bytes, expected at most {limit}", code="file_too_large")
        data = disk.read_at(file, 0, limit + 1)
    if len(data) != size:
        raise CheckpointError(
            f"{path}: found {len(data)} bytes where its size said {size}; it changes while it is read: try again",
            code="file_changed",
        )
    return data


def _expect_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    kind = next((name for test, name in kinds if test(mode)), "a device")
    raise CheckpointError(f"{path}: found {kind}, expected a regular file", code="not_a_file")
