"""The one door to the file system: every read, map, write and rename of this room goes through `disk`.

Only regular files are opened, so a FIFO cannot hang a load and a device is never touched. Operating system errors
become `CheckpointError`s that name the file. Tests replace `disk` to make the N-th call fail.
"""

import ctypes
import mmap
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
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

    def write_at(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
        """All of `data`, from byte `offset` on."""
        file.seek(offset)
        rest = memoryview(data).cast("B")
        while rest.nbytes:
            rest = rest[file.write(rest) :]

    def sync(self, file: BinaryIO) -> None:
        """Down to the medium, so that a later rename never names a file whose content is still on its way."""
        os.fsync(file.fileno())

    def replace(self, source: Path, target: Path) -> None:
        """Atomic rename; the folder itself is synced so that the new name survives a power cut."""
        os.replace(source, target)
        _sync_folder(target.parent)

    def make_folder(self, beside: Path) -> Path:
        """A new empty folder in the same place as `beside`, so that a rename between the two is one step."""
        beside.parent.mkdir(parents=True, exist_ok=True)
        folder = _partial(beside)
        folder.mkdir()
        return folder

    def put_folder(self, source: Path, target: Path) -> None:
        """`source` becomes `target` in one step; what was at `target` is at `source` afterwards, or nothing is.

        Where the system cannot swap two folders, an old `target` is moved aside first: two steps, and a stop between
        them leaves both folders complete under names next to it.
        """
        if target.exists() and not any(target.iterdir()):
            target.rmdir()
        if not target.exists():
            os.replace(source, target)
        elif not _swap(source, target):
            aside = source.with_suffix(".old")
            os.replace(target, aside)
            os.replace(source, target)
            os.replace(aside, source)
        _sync_folder(target.parent)


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an operating system error inside the block into a `CheckpointError` about `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{path}: writing failed ({error}), expected room and permission to write; what was there before is "
            "untouched: make room and run it again",
            code="write_error",
        ) from error


def write_whole(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Make the file at `path` with what `fill` writes: whole, or not at all.

    The content goes to a new file in the same folder, down to the medium, and takes its name in one step. An old file
    under this name stays until then, and stays for programs that have it open or mapped.
    """
    partial = _partial(path)
    with writing(path):
        try:
            with disk.create(partial) as file:
                fill(file)
                disk.sync(file)
            disk.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _sync_folder(path: Path) -> None:
    """A new name in a folder is durable once the folder is; not every system lets a folder be opened."""
    if hasattr(os, "O_DIRECTORY"):
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _partial(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")


def _swap(first: Path, second: Path) -> bool:
    """Exchange two folders in one step (renameat2, Linux 3.15); False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    at_cwd, exchange = -100, 2
    return bool(renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0)


def _expect_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"))
    kind = next((name for test, name in kinds if test(mode)), "a device")
    raise CheckpointError(f"{path}: found {kind}, expected a regular file", code="not_a_file")
