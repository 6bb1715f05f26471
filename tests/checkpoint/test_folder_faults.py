"""Folders: shards and index that do not belong together, names that lead outside, and things that are no files."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from checkpoint.attacks import folder, good, one
from coterie.checkpoint import open_checkpoint
from coterie.errors import CheckpointError

INDEX = "model.safetensors.index.json"
A = good({"a": np.ones(2, np.float32)})
B = good({"b": np.ones(2, np.float32)})
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(path: Path) -> Path:
    """Two correct shards and their index."""
    return folder(path, {FIRST: A, SECOND: B}, index={"a": FIRST, "b": SECOND})


def missing_shard(path: Path) -> None:
    (path / SECOND).unlink()


def missing_shard_without_index(path: Path) -> None:
    (path / SECOND).unlink()
    (path / INDEX).unlink()


def stray_shard(path: Path) -> None:
    (path / "model-00003-of-00003.safetensors").write_bytes(A)


def stray_shard_without_index(path: Path) -> None:
    (path / INDEX).unlink()
    (path / "model.safetensors").write_bytes(one())


def shards_of_two_sets(path: Path) -> None:
    (path / INDEX).unlink()
    (path / SECOND).rename(path / "model-00002-of-00003.safetensors")


def numbers_beyond_the_total(path: Path) -> None:
    (path / INDEX).unlink()
    (path / "model-00003-of-00002.safetensors").write_bytes(one())


def names(*files: object) -> Callable[[Path], None]:
    """An index that sends tensor "b" to each of these."""

    def write(path: Path) -> None:
        (path / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, **{f"b{i}": f for i, f in enumerate(files)}}}))

    return write


def absolute_name(path: Path) -> None:
    (path.parent / "secret.safetensors").write_bytes(B)
    names(str(path.parent / "secret.safetensors"))(path)


def parent_name(path: Path) -> None:
    (path.parent / "secret.safetensors").write_bytes(B)
    names("../secret.safetensors")(path)


def link_out(path: Path) -> None:
    (path.parent / "secret.safetensors").write_bytes(B)
    (path / SECOND).unlink()
    (path / SECOND).symlink_to(path.parent / "secret.safetensors")


def config_link_out(path: Path) -> None:
    (path / "config.json").rename(path.parent / "config.json")
    (path / "config.json").symlink_to(path.parent / "config.json")


def link_to_nothing(path: Path) -> None:
    (path / SECOND).unlink()
    (path / SECOND).symlink_to(path / "nothing")


def link_in_a_circle(path: Path) -> None:
    (path / SECOND).unlink()
    (path / SECOND).symlink_to(path / SECOND)


def fifo(path: Path) -> None:
    (path / SECOND).unlink()
    os.mkfifo(path / SECOND)


def device(path: Path) -> None:
    (path / SECOND).unlink()
    (path / SECOND).symlink_to("/dev/zero")


def directory(path: Path) -> None:
    (path / SECOND).unlink()
    (path / SECOND).mkdir()


def a_socket(path: Path) -> None:
    (path / SECOND).unlink()
    here = os.getcwd()
    os.chdir(path)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(SECOND)
    finally:
        os.chdir(here)


def same_tensor_twice(path: Path) -> None:
    (path / SECOND).write_bytes(A)


def same_tensor_twice_without_index(path: Path) -> None:
    same_tensor_twice(path)
    (path / INDEX).unlink()


def index_with_a_tensor_too_many(path: Path) -> None:
    (path / INDEX).write_text(json.dumps({"weight_map": {"a": FIRST, "b": SECOND, "gone": SECOND}}))


def index_with_a_tensor_too_few(path: Path) -> None:
    (path / SECOND).write_bytes(good({"b": np.ones(2, np.float32), "new": np.ones(2, np.float32)}))


def index_with_the_wrong_file(path: Path) -> None:
    (path / INDEX).write_text(json.dumps({"weight_map": {"a": SECOND, "b": FIRST}}))


def raw_index(text: str) -> Callable[[Path], None]:
    """An index of this text."""
    return lambda path: (path / INDEX).write_text(text) and None  # type: ignore[func-returns-value]


def no_weights(path: Path) -> None:
    for name in (FIRST, SECOND, INDEX):
        (path / name).unlink()


def other_weights(path: Path) -> None:
    no_weights(path)
    (path / "pytorch_model.bin").write_bytes(b"PK")


def no_config(path: Path) -> None:
    (path / "config.json").unlink()


ROWS: list[tuple[Callable[[Path], None], str, tuple[str, ...]]] = [
    (missing_shard, "shard_missing", (SECOND, INDEX)),
    (missing_shard_without_index, "shard_missing", (SECOND,)),
    (stray_shard, "shard_stray", ("model-00003-of-00003.safetensors", INDEX)),
    (stray_shard_without_index, "shard_stray", ("model.safetensors",)),
    (shards_of_two_sets, "shard_stray", ("model-0000",)),
    (numbers_beyond_the_total, "shard_stray", ()),
    (parent_name, "path_escapes", ("../secret.safetensors",)),
    (absolute_name, "path_escapes", ("secret.safetensors",)),
    (names(""), "path_escapes", ("''",)),
    (names(".."), "path_escapes", ("'..'",)),
    (names("sub/x.safetensors"), "path_escapes", ("sub/x.safetensors",)),
    (names("..\\x.safetensors"), "path_escapes", ("x.safetensors",)),
    (names("a\0.safetensors"), "path_escapes", ("\\x00",)),
    (names("a\x1b[2J.safetensors"), "path_escapes", ("\\x1b",)),
    (names("config.json"), "index_weight_map", ("config.json", ".safetensors")),
    (names(5), "index_weight_map", ("maps tensors to files",)),
    (link_out, "path_escapes", (SECOND, "secret.safetensors", "symbolic link")),
    (config_link_out, "path_escapes", ("config.json", "symbolic link")),
    (device, "path_escapes", (SECOND, "/dev/zero")),
    (link_to_nothing, "file_missing", (SECOND,)),
    (link_in_a_circle, "read_error", (SECOND,)),
    (fifo, "not_a_file", (SECOND, "a FIFO", "regular file")),
    (directory, "not_a_file", (SECOND, "a directory", "regular file")),
    (a_socket, "not_a_file", (SECOND, "a socket", "regular file")),
    (same_tensor_twice, "tensor_duplicate", (FIRST, SECOND, "'a'")),
    (same_tensor_twice_without_index, "tensor_duplicate", (FIRST, SECOND, "'a'")),
    (index_with_a_tensor_too_many, "index_stale", ("'gone'", SECOND, INDEX)),
    (index_with_a_tensor_too_few, "index_stale", ("'new'", SECOND, INDEX)),
    (index_with_the_wrong_file, "index_stale", ("'a'", SECOND, INDEX)),
    (raw_index("[]"), "index_not_object", (INDEX,)),
    (raw_index("{}"), "index_weight_map", (INDEX,)),
    (raw_index('{"weight_map": {}}'), "index_weight_map", (INDEX,)),
    (raw_index('{"weight_map": {"a": "x", "a": "y"}}'), "index_duplicate_key", ("'a'",)),
    (raw_index("[" * 100_000), "index_nested", (INDEX,)),
    (raw_index('{"x":' * 70 + "1" + "}" * 70), "index_nested", (INDEX, "64")),
    (raw_index("nonsense"), "index_not_json", (INDEX,)),
    (no_weights, "no_weights", (INDEX, "model.safetensors")),
    (other_weights, "no_weights", ("pytorch_model.bin",)),
]


@pytest.mark.parametrize(("attack", "code", "says"), ROWS, ids=lambda value: getattr(value, "__name__", None))
def test_refused_by_name(
    attack: Callable[[Path], None], code: str, says: tuple[str, ...], tmp_path: Path, open_files: Callable[[], int]
) -> None:
    path = sharded(tmp_path / "model")
    attack(path)
    before = open_files()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert caught.value.code == code, message
    for words in (str(tmp_path), *says):
        assert words in message
    assert message.isprintable()
    assert open_files() == before


def test_the_good_folder_opens(tmp_path: Path) -> None:
    with open_checkpoint(sharded(tmp_path / "model")) as checkpoint:
        assert checkpoint.names == ("a", "b")
        assert checkpoint.file_of("b").name == SECOND


def test_numbered_shards_need_no_index(tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    (path / INDEX).unlink()
    assert open_checkpoint(path).names == ("a", "b")


def test_other_safetensors_files_are_not_part_of_the_model(tmp_path: Path) -> None:
    path = sharded(tmp_path / "model")
    (path / "adapters.safetensors").write_bytes(b"not read")
    assert open_checkpoint(path).names == ("a", "b")


def test_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "abc"
    sharded(blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../..") / "blobs" / file.name)
    assert open_checkpoint(snapshot).names == ("a", "b")
    (snapshot / SECOND).unlink()
    (snapshot / SECOND).symlink_to("../../../secret")
    (tmp_path / "secret").write_bytes(B)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(snapshot)
    assert caught.value.code == "path_escapes"


def test_a_folder_that_is_itself_a_link(tmp_path: Path) -> None:
    sharded(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert open_checkpoint(tmp_path / "link").names == ("a", "b")
