"""Which files of a folder belong to a checkpoint, and that each of them is where a checkpoint may have it.

Rules for a member: its name is a plain file name; it is a regular file; a symbolic link may point inside the folder
or, in the hub's cache (`snapshots/<revision>/name -> ../../blobs/<hash>`), at a blob of the same repository.
"""

import os
import re
from pathlib import Path

from coterie.checkpoint.files import reading, show
from coterie.checkpoint.strict_json import read_object
from coterie.errors import CheckpointError

INDEX = "model.safetensors.index.json"
MAX_INDEX = 64_000_000
_NUMBERED = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".npz", ".gguf", ".h5", ".msgpack")


def member(folder: Path, name: str) -> Path:
    """The path of the file `name` of a checkpoint; `CheckpointError` if the name or where it leads is not allowed."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name or not name.isprintable():
        raise CheckpointError(
            f"{folder}: found the file name {show(name, 300)}, expected a plain file name inside the folder; "
            "no checkpoint needs more, do not trust this one",
            code="path_escapes",
        )
    path = folder / name
    with reading(path):
        if not path.is_symlink():
            return path
        home, target = folder.resolve(), Path(os.path.realpath(path, strict=True))
    blobs = home.parent.parent / "blobs"
    if target.is_relative_to(home) or (home.parent.name == "snapshots" and target.is_relative_to(blobs)):
        return path
    raise CheckpointError(
        f"{path}: found a symbolic link out of the folder (to {target}), expected a file inside it; "
        "copy the file there, or load the folder that it points to",
        code="path_escapes",
    )


def has_member(folder: Path, name: str) -> bool:
    """Is there anything under this name, readable or not?"""
    return (folder / name).is_symlink() or (folder / name).exists()


def weight_files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """The names of the safetensors files in order, and the index's {tensor: file}, or None where there is no index."""
    with reading(folder):
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: expected a folder with a checkpoint; check the path", code="not_a_folder")
        present = sorted(path.name for path in folder.iterdir())
    shards = [name for name in present if name.startswith("model") and name.endswith(".safetensors")]
    if INDEX in present:
        return _indexed(folder, shards)
    if not shards:
        raise _no_weights(folder, present)
    if shards != ["model.safetensors"]:
        _check_numbered(folder, shards)
    return shards, None


def _indexed(folder: Path, shards: list[str]) -> tuple[list[str], dict[str, str]]:
    path = member(folder, INDEX)
    index = read_object(path, MAX_INDEX, CheckpointError, prefix="index")
    weight_map = index.get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(
            f'{path}: found "weight_map" {show(weight_map)}, expected an object that maps tensors to files',
            code="index_weight_map",
        )
    wanted = sorted(set(weight_map.values()))
    for name in wanted:
        if not member(folder, name).name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path}: found the file {show(name)}, expected only .safetensors files", code="index_weight_map"
            )
        if not has_member(folder, name):
            raise _missing(folder, name, INDEX)
    stray = [name for name in shards if name not in wanted]
    if stray:
        raise _stray(folder, stray[0], f"{INDEX} does not name it")
    return wanted, weight_map


def _check_numbered(folder: Path, shards: list[str]) -> None:
    """Without an index the names themselves must count: model-00001-of-0000n to model-0000n-of-0000n."""
    matches = {name: _NUMBERED.fullmatch(name) for name in shards}
    totals = {match[2] for match in matches.values() if match}
    stray = next((name for name, match in matches.items() if match is None), None)
    if stray is not None or len(totals) != 1:
        raise _stray(folder, stray or shards[-1], f"there is no {INDEX} that says what belongs together")
    total = totals.pop()
    for i in range(1, int(total) + 1):
        name = f"model-{i:05d}-of-{total}.safetensors"
        if name not in matches:
            raise _missing(folder, name, "its sibling's name")
    if len(shards) != int(total):
        raise _stray(folder, shards[0], f"its siblings count from 1 to {int(total)}")


def _missing(folder: Path, name: str, wanted_by: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / name}: the file is not there, expected because {wanted_by} names it; fetch the checkpoint again",
        code="shard_missing",
    )


def _stray(folder: Path, name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / name}: found a file of weights that does not belong to the rest: {reason}; move it away, or fetch "
        "the checkpoint again",
        code="shard_stray",
    )


def _no_weights(folder: Path, present: list[str]) -> CheckpointError:
    others = [name for name in present if name.endswith((*_OTHER_WEIGHTS, ".safetensors"))]
    found = f"found {', '.join(show(name) for name in others[:3])}" if others else "found no file of weights"
    return CheckpointError(
        f"{folder}: {found}, expected model.safetensors, or its shards and {INDEX}; Coterie reads no other format: "
        "fetch a safetensors checkpoint",
        code="no_weights",
    )
