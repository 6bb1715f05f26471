"""Conversations on disk: {"version": 1, "messages": [{"role", "content", ...}, ...]} as JSON, whole or not at all."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import read_whole, show, write_whole
from coterie.checkpoint.strict_json import parse
from coterie.errors import RequestError
from coterie.runtime.messages import checked_messages

MAX_HISTORY = 64_000_000
_VERSION = 1
_KEYS = {"version", "messages"}


def load_history(path: Path) -> list[dict[str, Any]]:
    """The messages in the file at `path`.

    `RequestError` for a file that is no conversation, `CheckpointError` for one that is missing or cannot be read.
    """
    try:
        value = parse(read_whole(path, MAX_HISTORY), str(path), RequestError, prefix="history")
    except RequestError as error:
        raise RequestError(
            f"{path}: found no sound JSON ({show(str(error.__cause__), 120)}), expected a conversation as coterie chat "
            "writes it; name another file",
            code=error.code,
        ) from error
    if not isinstance(value, dict) or value.keys() != _KEYS or value["version"] != _VERSION:
        found = f"an object with {', '.join(sorted(value))[:80]}" if isinstance(value, dict) else type(value).__name__
        raise RequestError(
            f'{path}: found {found or "an empty object"}, expected {{"version": {_VERSION}, "messages": [...]}} as '
            "coterie chat writes it; name another file",
            code="history_kind",
        )
    if value["messages"] == []:
        return []
    try:
        messages = checked_messages(value["messages"])
        _check_contents(messages)
    except RequestError as error:
        raise RequestError(f"{path}: {error}", code="history_messages") from error
    return messages


def save_history(path: Path, messages: Sequence[Mapping[str, Any]]) -> None:
    """Write the messages to `path`; an existing file is replaced only if it is a conversation.

    `RequestError` for an existing file of another kind, `CheckpointError` where writing fails.
    """
    if os.path.exists(path):
        try:
            load_history(path)
        except RequestError as error:
            raise RequestError(
                f"{path}: found a file that is no conversation, expected a new name or a conversation to replace; "
                "choose another name",
                code="history_occupied",
            ) from error
    text = json.dumps({"version": _VERSION, "messages": list(messages)}, ensure_ascii=False, indent=1)
    data = text.encode() + b"\n"
    write_whole(path, lambda file: _write(file, data))


def _write(file: Any, data: bytes) -> None:
    rest = memoryview(data)
    while rest.nbytes:
        rest = rest[file.write(rest) :]


def _check_contents(messages: Sequence[Mapping[str, Any]]) -> None:
    for index, message in enumerate(messages):
        if message["role"] == "system" and index:
            raise RequestError(f"messages[{index}] is the system's, expected only the first to be")
        if not isinstance(message.get("content", ""), str | list):
            raise RequestError(f"messages[{index}]['content'] is neither a text nor a list of parts")
