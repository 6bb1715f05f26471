"""How to make each bad file: small pieces from which the tables of this folder build a checkpoint with one fault."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def raw(header: bytes | str, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file from a header as it is; `length` lies about the header's length."""
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def described(entries: Mapping[str, Any], data: bytes) -> bytes:
    """A safetensors file whose header is `entries` as JSON."""
    return raw(json.dumps(entries), data)


def one(data: bytes = bytes(8), **changes: Any) -> bytes:
    """A file with the one tensor "t", two float32 numbers, with `changes` to its entry (None removes a key)."""
    entry = {key: value for key, value in {**F32, **changes}.items() if value is not None}
    return described({"t": entry}, data)


def good(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, padding: int = 0) -> bytes:
    """A correct file, its header followed by `padding` spaces: an odd number leaves every tensor unaligned."""
    names = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint32": "U32", "uint8": "U8", "int64": "I64"}
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at, data = 0, b""
    for name, array in tensors.items():
        content = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": names[str(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [at, at + len(content)],
        }
        at, data = at + len(content), data + content
    return raw(json.dumps(header).encode() + b" " * padding, data)


CONFIG = {"model_type": "qwen3_moe"}


def folder(
    path: Path,
    files: Mapping[str, bytes],
    config: Mapping[str, Any] | bytes | None = CONFIG,
    index: Mapping[str, str] | None = None,
) -> Path:
    """A checkpoint's folder: files as they are, config.json, and an index if one is given."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    if config is not None:
        content = config if isinstance(config, bytes) else json.dumps(config).encode()
        (path / "config.json").write_bytes(content)
    if index is not None:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path
