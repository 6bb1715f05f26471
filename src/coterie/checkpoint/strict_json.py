"""JSON, read strictly: UTF-8, no duplicate keys, no NaN or infinity, no numbers beyond 64 bits, bounded depth and size.

The standard parser keeps the last of two equal keys, accepts `NaN`, turns 1e999 into infinity and takes integers of any
length. Each of these lets two readers see two different files, so each is an error here.
"""

import json
import math
from pathlib import Path
from typing import Any

from coterie.checkpoint.files import read_whole, show
from coterie.errors import CheckpointError, CoterieError

MAX_DEPTH = 64


class _RefusedError(ValueError):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse(text: bytes, what: str, error: type[CoterieError] = CheckpointError, *, prefix: str = "json") -> Any:
    """The value that `text` spells. Failures are an `error` about `what`, its code starting with `prefix`:
    `_not_utf8`, `_not_json`, `_nested`, `_duplicate_key`, `_number`.
    """
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as failure:
        raise error(
            f"{what}: found byte {failure.start} that is not UTF-8, expected UTF-8 text; the file is damaged",
            code=f"{prefix}_not_utf8",
        ) from failure
    try:
        return json.loads(
            decoded,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except _RefusedError as failure:
        raise error(f"{what}: {failure}", code=f"{prefix}_{failure.code}") from failure
    except RecursionError as failure:
        raise error(
            f"{what}: found nesting without end, expected at most {MAX_DEPTH} levels", code=f"{prefix}_nested"
        ) from failure
    except ValueError as failure:
        raise error(
            f"{what}: found broken JSON ({show(str(failure))}), expected one JSON value; fetch the file again",
            code=f"{prefix}_not_json",
        ) from failure


def read_object(path: Path, limit: int, error: type[CoterieError], *, prefix: str = "json") -> dict[str, Any]:
    """The JSON object in the file at `path` of at most `limit` bytes and `MAX_DEPTH` levels."""
    value = parse(read_whole(path, limit), str(path), error, prefix=prefix)
    if not isinstance(value, dict):
        raise error(f"{path}: found a JSON {type(value).__name__}, expected an object", code=f"{prefix}_not_object")
    if _deeper_than(value, MAX_DEPTH):
        raise error(f"{path}: found more than {MAX_DEPTH} levels of nesting", code=f"{prefix}_nested")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError("duplicate_key", f"found the key {show(twice)} twice in one object, expected once")
    return value


def _constant(text: str) -> None:
    raise _RefusedError("number", f"found {text}, expected a finite number")


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**63:
        raise _RefusedError("number", f"found the integer {show(text, 40)}, expected one of at most 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _RefusedError("number", f"found {show(text, 40)}, expected a number that fits in 64 bits")
    return value


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
