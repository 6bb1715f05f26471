"""Conversations on disk: what is written comes back, and a file that lies is refused by name."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from coterie.errors import CheckpointError, CoterieError, RequestError
from coterie.runtime.history import load_history, save_history
from runtime.templates_made import CONVERSATIONS, said


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_what_is_written_comes_back(name: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    save_history(file, CONVERSATIONS[name])
    assert load_history(file) == CONVERSATIONS[name]
    save_history(file, said("again"))
    assert load_history(file) == said("again")
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


def test_no_messages_are_a_conversation(tmp_path: Path) -> None:
    save_history(tmp_path / "x", [])
    assert load_history(tmp_path / "x") == []


def good(**changed: Any) -> dict[str, Any]:
    return {"version": 1, "messages": said("a", "b"), **changed}


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "history_not_json"),
        (b"\xff\xfe", "history_not_utf8"),
        (b"not json", "history_not_json"),
        (b'{"version": 1, "messages": [', "history_not_json"),
        (b'{"version": 1, "version": 1, "messages": []}', "history_duplicate_key"),
        (b'{"version": NaN, "messages": []}', "history_number"),
        (b"[" * 100_000, "history_nested"),
        ([], "history_kind"),
        ("text", "history_kind"),
        (5, "history_kind"),
        ({}, "history_kind"),
        ({"messages": said("a")}, "history_kind"),
        (good(version=2), "history_kind"),
        (good(version="1"), "history_kind"),
        (good(more=1), "history_kind"),
        (good(messages=None), "history_messages"),
        (good(messages="abc"), "history_messages"),
        (good(messages={"role": "user"}), "history_messages"),
        (good(messages=["a"]), "history_messages"),
        (good(messages=[{}]), "history_messages"),
        (good(messages=[{"role": 1, "content": "x"}]), "history_messages"),
        (good(messages=[{"role": "user", "content": 5}]), "history_messages"),
        (good(messages=[{"role": "user", "content": "\ud800"}]), "history_messages"),
        (good(messages=[*said("a"), {"role": "system", "content": "b"}]), "history_messages"),
    ],
)
def test_a_file_that_lies_is_refused(content: Any, code: str, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(RequestError) as refused:
        load_history(file)
    assert refused.value.code == code
    assert str(refused.value).startswith(str(file))
    assert len(str(refused.value)) < 600
    before = file.read_bytes()
    with pytest.raises(RequestError) as kept:
        save_history(file, said("x"))
    assert kept.value.code == "history_occupied"
    assert file.read_bytes() == before


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "folder", "fifo"):
        with pytest.raises(CheckpointError):
            load_history(tmp_path / name)
    for path in (tmp_path / "no" / "such" / "folder", tmp_path / "folder", tmp_path / "fifo"):
        with pytest.raises(CoterieError):
            save_history(path, said("x"))
