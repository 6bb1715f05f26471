"""Writing safetensors files and whole checkpoints: afterwards the old one is there or the new one, never a mixture.

A file is written beside its place and renamed. A checkpoint is written into a hidden folder beside its place, read
back, and takes the place in one step. A process that is killed leaves at most such a hidden `.partial` folder or file,
which no reader looks at; it can be deleted.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from coterie.checkpoint import files
from coterie.checkpoint.files import write_whole, writing
from coterie.checkpoint.folder import INDEX
from coterie.checkpoint.header import DTYPES
from coterie.checkpoint.reader import Checkpoint
from coterie.errors import ArgumentError

MAX_SHARD = 5 << 30
ALIGNMENT = 64
"""The first tensor starts at a multiple of this, and larger items come first, so that every tensor is aligned."""

METADATA = {"format": "mlx"}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor to be written: its values come later."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return prod(self.shape) * self.dtype.itemsize


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] = METADATA) -> None:
    """Write `tensors` to the safetensors file at `path`, whole or not at all."""
    write_entries(path, [entry_of(name, array) for name, array in tensors.items()], tensors.items(), metadata)


def write_entries(
    path: Path,
    entries: Sequence[Entry],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] = METADATA,
) -> None:
    """Write the tensors announced by `entries` as `tensors` yields them, in any order; only one is held at a time."""
    header, offsets = _header(entries, metadata)

    def fill(file: BinaryIO) -> None:
        files.disk.write_at(file, 0, header)
        left = {entry.name: entry for entry in entries}
        for name, array in tensors:
            entry = left.pop(name, None)
            if entry is None or (entry.dtype, entry.shape) != (array.dtype, array.shape):
                raise ArgumentError(f"{path}: tensor {name}: found {array.dtype} {list(array.shape)}, expected {entry}")
            if entry.nbytes:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                files.disk.write_at(file, offsets[name], data.data)
        if left:
            raise ArgumentError(f"{path}: found no values for {sorted(left)[:3]}, expected some for every entry")

    write_whole(path, fill)


def entry_of(name: str, array: np.ndarray) -> Entry:
    """The entry that announces `array`; `ArgumentError` for a dtype that the format lacks."""
    if array.dtype not in _NAMES:
        raise ArgumentError(
            f"tensor {name}: found dtype {array.dtype}, expected one of {', '.join(map(str, _NAMES))}", code="dtype"
        )
    return Entry(name, array.dtype, array.shape)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON to `path`, whole or not at all; NaN and infinity are a `ValueError`, JSON has none."""
    data = (json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False) + "\n").encode()
    write_whole(path, lambda file: files.disk.write_at(file, 0, data))


def write_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    *,
    extra: Mapping[str, bytes] | None = None,
    max_shard: int = MAX_SHARD,
    force: bool = False,
) -> None:
    """Write a checkpoint to `folder`: shards of at most `max_shard` bytes, their index, config.json and `extra` files.

    `ArgumentError` if `folder` exists and is not empty, unless `force` replaces it. On any error it is as it was.
    """
    groups = [[entry_of(name, array)] for name, array in tensors.items()]
    write_streamed(folder, groups, tensors.items(), config, extra=extra, max_shard=max_shard, force=force)


def write_streamed(
    folder: str | Path,
    groups: Sequence[Sequence[Entry]],
    tensors: Iterable[tuple[str, np.ndarray]],
    config: Mapping[str, Any],
    *,
    extra: Mapping[str, bytes] | None = None,
    max_shard: int = MAX_SHARD,
    force: bool = False,
) -> None:
    """`write_checkpoint` for tensors that are made one after the other, in the order of `groups`.

    The entries of one group (a weight with its scales and biases) stay in one file.
    """
    target = checked_target(folder, force=force)
    with writing(target):
        staging = files.disk.make_folder(target)
        try:
            _write_members(staging, groups, iter(tensors), config, extra or {}, max_shard)
            Checkpoint(staging, scan=False).close()
            files.disk.put_folder(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def checked_target(folder: str | Path, *, force: bool) -> Path:
    """The folder to write to; `ArgumentError` if something is there that `force` does not allow to replace."""
    target = Path(folder).absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ArgumentError(f"{target}: found a file or a link, expected a folder or nothing", code="target")
    if not force and target.exists() and any(target.iterdir()):
        raise ArgumentError(
            f"{target}: found a folder that is not empty, expected a new one; choose another, or force the replacement",
            code="target_exists",
        )
    return target


def _write_members(
    staging: Path,
    groups: Sequence[Sequence[Entry]],
    tensors: Iterable[tuple[str, np.ndarray]],
    config: Mapping[str, Any],
    extra: Mapping[str, bytes],
    max_shard: int,
) -> None:
    shards = _shards(groups, max_shard)
    source = iter(tensors)
    weight_map: dict[str, str] = {}
    for i, entries in enumerate(shards, 1):
        single = len(shards) == 1
        name = "model.safetensors" if single else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_entries(staging / name, entries, (next(source) for _ in entries))
        weight_map.update((entry.name, name) for entry in entries)
    total = sum(entry.nbytes for entries in shards for entry in entries)
    write_json(staging / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    for name, data in extra.items():
        write_whole(staging / name, lambda file, data=data: files.disk.write_at(file, 0, data))  # type: ignore[misc]
    write_json(staging / "config.json", dict(sorted(config.items())))


def _shards(groups: Sequence[Sequence[Entry]], max_shard: int) -> list[list[Entry]]:
    """Consecutive groups in files of at most `max_shard` bytes; a larger group gets a file of its own."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for group in groups:
        nbytes = sum(entry.nbytes for entry in group)
        if shards[-1] and size + nbytes > max_shard:
            shards.append([])
            size = 0
        shards[-1].extend(group)
        size += nbytes
    return shards


def _header(entries: Sequence[Entry], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, up to where data starts, and where in the file each tensor goes."""
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    begins: dict[str, int] = {}
    at = 0
    for entry in sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name)):
        if entry.name in begins:
            raise ArgumentError(f"found the tensor {entry.name} twice, expected once", code="tensor_duplicate")
        begins[entry.name] = at
        described[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + begin for name, begin in begins.items()}
