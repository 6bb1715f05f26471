"""A folder or an id: only a well-formed id asks the hub, for the files that are read, and its failures are named."""

import socket
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
from huggingface_hub import errors

from checkpoint.attacks import folder, one
from coterie.checkpoint import local_folder, open_checkpoint
from coterie.errors import ArgumentError, CheckpointError


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to open a connection is an error of the test."""

    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "owner" / "name", {"model.safetensors": one()})
    assert local_folder(path) == path
    assert local_folder(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("owner/name").names == ("t",)


ODD_IDS = [
    "", "name", "a/b/c", "/etc/nothing", "../x", "a/..", "./x/y", "a/.b", "-a/b", "a/b-", "a//b", "a/b c", "a/b?x=1",
    "a/b#c", "a/b\n", "a/b\0", "https://huggingface.co/a/b", "a\\b", "a/b@main", "\u0430/b", "a--b/c", "a/b..c",
    "a/" + "b" * 97, "a/" + "b" * 5000, "~/x", "datasets/a/b", "a/b%2e",
]  # fmt: skip


@pytest.mark.parametrize("repo", ODD_IDS)
def test_odd_ids_are_refused(repo: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        local_folder(repo)
    assert caught.value.code == "repo_id"
    assert "owner/name" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_path_is_never_an_id(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        local_folder(Path("owner/name"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArgumentError, match="found a file"):
        local_folder(tmp_path / "file")


READ = (
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "generation_config.json",
)


@pytest.mark.parametrize("repo", ["mlx-community/Qwen3-30B-A3B-4bit", "a/b", "A1/b_c.d-e"])
def test_an_id_fetches_what_is_read_and_no_code(repo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def download(repo_id: str, **options: Any) -> str:
        asked.append({"repo_id": repo_id, **options})
        return str(folder(tmp_path / "snapshot", {"model.safetensors": one()}))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint(repo).names == ("t",)
    (options,) = asked
    assert options["repo_id"] == repo
    patterns = {key: options[f"{key}_patterns"] for key in ("allow", "ignore")}
    offered = [*READ, "modeling_x.py", "pytorch_model.bin", "original/model.safetensors", "README.md", "model.gguf"]
    taken = huggingface_hub.utils.filter_repo_objects(
        offered, allow_patterns=patterns["allow"], ignore_patterns=patterns["ignore"]
    )
    assert tuple(taken) == READ


def _of_http(kind: type[Exception], text: str) -> Exception:
    """An error that the client makes of a response, without the response: its class depends on the client's version."""
    return kind.__new__(kind, text)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (errors.LocalEntryNotFoundError("no"), "hub_offline", "HF_HUB_OFFLINE"),
        (errors.OfflineModeIsEnabled("no"), "hub_offline", "HF_HUB_OFFLINE"),
        (_of_http(errors.GatedRepoError, "no"), "hub_gated", "hf auth login"),
        (_of_http(errors.RepositoryNotFoundError, "no"), "hub_not_found", "spelling"),
        (_of_http(errors.HfHubHTTPError, "no\nand more"), "hub_failed", "resumed"),
        (OSError("disk full"), "hub_failed", "disk full"),
        (ValueError("odd"), "hub_failed", "odd"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failures_are_named(error: Exception, code: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError) as caught:
        local_folder("a/b")
    assert caught.value.code == code
    assert says in str(caught.value)
    assert str(caught.value).startswith("a/b: ")
    assert str(caught.value).isprintable()


def test_offline_and_not_cached_asks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, offline, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        local_folder("coterie-nobody/nothing")
    assert caught.value.code == "hub_offline"
