"""A file of prompts: a text a line, or in a .jsonl file a JSON text or object a line."""

import sys
from pathlib import Path
from typing import Any

from coterie.errors import RequestError

MAX_FILE = 256_000_000


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """{"prompt", and its own options}, for each line of the file at `path` that is not blank; - is standard input.

    `RequestError` for a file that cannot be read, or a line that is no prompt.
    """
    lines = _text(path).splitlines()
    as_json = path.suffix == ".jsonl"
    found = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise RequestError(f"{path}: found no line, expected a prompt a line", code="prompts_empty")
    return [_of_json(line, f"{path}, line {number}") if as_json else {"prompt": line} for number, line in found]


def _text(path: Path) -> str:
    from coterie.checkpoint.files import read_whole

    data = sys.stdin.buffer.read() if str(path) == "-" else read_whole(path, MAX_FILE)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path}: byte {error.start} of {len(data)} is 0x{data[error.start]:02x} and not UTF-8; convert it first",
            code="prompt_encoding",
        ) from None


def _of_json(line: str, where: str) -> dict[str, Any]:
    from coterie.checkpoint.strict_json import parse

    value = parse(line.encode(), where, RequestError, prefix="prompts")
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict) or "prompt" not in value:
        raise RequestError(
            f'{where}: found a JSON {type(value).__name__}, expected a text, or an object with "prompt" and options',
            code="prompts_line",
        )
    biases = value.get("logit_bias")
    if isinstance(biases, dict):
        # The keys of JSON are texts.
        value["logit_bias"] = {int(key) if key.isdecimal() else key: bias for key, bias in biases.items()}
    return value
