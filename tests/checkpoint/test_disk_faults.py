"""Disks that fail and files that change: a read error is refused by name, a write error leaves the old or the new."""

import errno
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from checkpoint.attacks import CONFIG, folder, good
from coterie.checkpoint import files, open_checkpoint, write_checkpoint, write_safetensors
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.errors import CheckpointError

OLD = {"a": np.full(1000, 1, np.float32), "b": np.full(1000, 1, np.float16), "c": np.full(1000, 1, np.float32)}
NEW = {name: array + array.dtype.type(1) for name, array in OLD.items()}


class BadDisk(files.Disk):
    """Fails the N-th call of any kind; with `short`, a failing write first writes a part of its data."""

    def __init__(self, fail_at: int) -> None:
        self.calls = 0
        self.fail_at = fail_at

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise OSError(errno.EIO, "injected")

    def open_read(self, path: Path) -> BinaryIO:
        self._count()
        return super().open_read(path)

    def read_at(self, file: BinaryIO, offset: int, size: int) -> bytes:
        self._count()
        return super().read_at(file, offset, size)

    def map(self, file: BinaryIO) -> mmap.mmap:
        self._count()
        return super().map(file)

    def create(self, path: Path) -> BinaryIO:
        self._count()
        return super().create(path)

    def write_at(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> None:
        try:
            self._count()
        except OSError:
            half = memoryview(data).cast("B")
            super().write_at(file, offset, half[: len(half) // 2])
            raise
        super().write_at(file, offset, data)

    def sync(self, file: BinaryIO) -> None:
        self._count()
        super().sync(file)

    def replace(self, source: Path, target: Path) -> None:
        self._count()
        super().replace(source, target)

    def make_folder(self, beside: Path) -> Path:
        self._count()
        return super().make_folder(beside)

    def put_folder(self, source: Path, target: Path) -> None:
        self._count()
        super().put_folder(source, target)


def failing(monkeypatch: pytest.MonkeyPatch, attempt: Callable[[], Any]) -> Iterator[CheckpointError]:
    """Runs `attempt` with the first, second, ... call of the disk failing, until one run comes through."""
    for n in range(1, 200):
        disk = BadDisk(n)
        with monkeypatch.context() as patch:
            patch.setattr(files, "disk", disk)
            try:
                attempt()
            except CheckpointError as error:
                yield error
                continue
        assert disk.calls < n
        assert n > 4, "the seam was not used"
        return
    raise AssertionError("it never came through")


def test_every_read_that_fails_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_files: Callable[[], int]
) -> None:
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    path = folder(
        tmp_path / "m", {first: good({"a": OLD["a"]}), second: good({"b": OLD["b"]})}, index={"a": first, "b": second}
    )
    before = open_files()
    for error in failing(monkeypatch, lambda: open_checkpoint(path).close()):
        assert error.code == "read_error"
        assert str(path) in str(error)
        assert "injected" in str(error)
        assert open_files() == before
    assert open_checkpoint(path).tensors["b"][0] == 1


def test_short_reads_are_never_taken_for_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "m", {"model.safetensors": good(OLD)})

    class ShortDisk(files.Disk):
        def read_at(self, file: BinaryIO, offset: int, size: int) -> bytes:
            return super().read_at(file, offset, size)[:-1]

    monkeypatch.setattr(files, "disk", ShortDisk())
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert caught.value.code == "file_changed"


@pytest.mark.parametrize("exists", [False, True])
def test_a_checkpoint_is_old_or_new_whatever_write_fails(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    if exists:
        write_checkpoint(path, OLD, CONFIG, max_shard=5000)

    def attempt() -> None:
        write_checkpoint(path, NEW, CONFIG, max_shard=5000, extra={"tokenizer.json": b"{}"}, force=True)

    for error in failing(monkeypatch, attempt):
        assert error.code in ("write_error", "read_error")
        assert str(path.parent) in str(error)
        assert [child.name for child in tmp_path.iterdir()] == (["model"] if exists else [])
        if exists:
            assert_holds(path, OLD)
    assert_holds(path, NEW)
    assert [child.name for child in tmp_path.iterdir()] == ["model"]
    assert len(list(path.glob("*.safetensors"))) == 3


@pytest.mark.parametrize("exists", [False, True])
def test_a_file_is_old_or_new_whatever_write_fails(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    if exists:
        write_safetensors(path, OLD)
    before = path.read_bytes() if exists else None
    for error in failing(monkeypatch, lambda: write_safetensors(path, NEW)):
        assert error.code == "write_error"
        assert (path.read_bytes() if path.exists() else None) == before
        assert len(list(tmp_path.iterdir())) == exists
    assert SafetensorsFile(path).array("a")[0] == 2


def test_an_open_checkpoint_outlives_its_replacement(tmp_path: Path) -> None:
    path = tmp_path / "model"
    write_checkpoint(path, OLD, CONFIG)
    old = open_checkpoint(path)
    write_checkpoint(path, NEW, CONFIG, force=True)
    np.testing.assert_array_equal(old.tensors["a"], OLD["a"])
    with pytest.raises(CheckpointError) as caught:
        old.check_unchanged()
    assert caught.value.code == "file_changed"
    assert_holds(path, NEW)


KILLED = """
import os, sys
from pathlib import Path
import numpy as np
from coterie.checkpoint import files, write_checkpoint

fail_at, calls = int(sys.argv[2]), 0

class Killer(files.Disk):
    pass

def counted(name):
    plain = getattr(files.Disk, name)
    def call(self, *arguments):
        global calls
        calls += 1
        if calls == fail_at:
            if name == "write_at":
                file, offset, data = arguments
                plain(self, file, offset, memoryview(data).cast("B")[:7])
            os.kill(os.getpid(), 9)
        return plain(self, *arguments)
    return call

for name in ("create", "write_at", "sync", "replace", "make_folder", "put_folder"):
    setattr(Killer, name, counted(name))
files.disk = Killer()
new = {name: np.full(1000, 2, dtype) for name, dtype in (("a", np.float32), ("b", np.float16), ("c", np.float32))}
while True:
    pid = os.fork()
    if pid == 0:
        write_checkpoint(sys.argv[1], new, {"model_type": "qwen3_moe"}, max_shard=5000, force=True)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    print(fail_at, status, flush=True)
    if status == 0:
        break
    sys.stdin.readline()
    fail_at += 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 needs a process of its own, made by fork")
@pytest.mark.parametrize("exists", [False, True])
def test_a_checkpoint_is_old_or_new_whenever_it_is_killed(exists: bool, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if exists:
        write_checkpoint(path, OLD, CONFIG, max_shard=5000)
    command = [sys.executable, "-c", KILLED, str(path), "1"]
    kills = 0
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[1] == "0":
                break
            kills += 1
            if exists:
                assert_holds(path, OLD)
            else:
                assert not path.exists()
            print(file=process.stdin, flush=True)
    assert kills > 12
    assert_holds(path, NEW)
    leftovers = [child.name for child in tmp_path.iterdir() if child != path]
    assert all(name.startswith(".model.") and name.endswith(".partial") for name in leftovers)


def assert_holds(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """The checkpoint at `path` opens, and has exactly these tensors."""
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.names == tuple(sorted(tensors))
        for name, array in tensors.items():
            np.testing.assert_array_equal(checkpoint.tensors[name], array)
        index = json.loads((path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())


@pytest.mark.parametrize("how", ["cut", "grown", "rewritten", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_open(how: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"model.safetensors": good(OLD)}) / "model.safetensors"
    checkpoint = open_checkpoint(path.parent)
    data = path.read_bytes()
    if how == "cut":
        os.truncate(path, len(data) - 1)
    elif how == "grown":
        path.write_bytes(data + b"\0")
    elif how == "rewritten":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
        if how == "replaced":
            path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_unchanged()
    assert caught.value.code == ("file_missing" if how == "removed" else "file_changed")
    assert str(path) in str(caught.value)
    if how in ("cut", "grown"):
        with pytest.raises(CheckpointError) as caught:
            _ = checkpoint.tensors["a"]
        assert caught.value.code == "file_changed"
    else:
        np.testing.assert_array_equal(checkpoint.tensors["a"], OLD["a"])


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "m", {"model.safetensors": good(OLD)})

    class Cutting(files.Disk):
        def map(self, file: BinaryIO) -> mmap.mmap:
            os.truncate(path / "model.safetensors", 4096)
            return super().map(file)

    monkeypatch.setattr(files, "disk", Cutting())
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path / "model.safetensors")
    assert caught.value.code == "file_changed"
