"""Definitions of tiny tokenizers, as tokenizer.json holds them."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from models import tiny


@functools.cache
def _byte_level_text() -> str:
    with tempfile.TemporaryDirectory() as folder:
        tiny.write_tokenizer(Path(folder))
        return (Path(folder) / "tokenizer.json").read_text()


def byte_level() -> dict[str, Any]:
    """Byte-level BPE of at most 512 tokens; ids 0 to 2 are special."""
    made: dict[str, Any] = json.loads(_byte_level_text())
    return made


def byte_fallback() -> dict[str, Any]:
    """BPE on characters with a token for each byte, blanks spelled U+2581, as in Gemma."""
    words = ["<pad>", "<eos>", "<bos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", *"abcdefghijklmnopqrstuvwxyz.\n", "th", "the", "\u2581the", "é"]
    special = [
        {
            "id": i,
            "content": words[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i in range(3)
    ]
    blank = {"String": "\u2581"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<bos>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": blank, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [["t", "h"], ["th", "e"], ["\u2581", "the"]],
        },
    }


def dumped(definition: Any) -> bytes:
    """The content of the file."""
    return json.dumps(definition).encode()
