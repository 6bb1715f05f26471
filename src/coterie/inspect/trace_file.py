"""A `Trace` as a safetensors file, and back: read strictly, like every file that strangers may have written.

metadata      format, version, model, fingerprint, n_layers, window; experts: JSON [[layer, n_experts], ...]
tokens                     u32 [T]
vocabulary.tokens          u32 [U], rising, exactly those that occur
vocabulary.ends            u64 [U], where each token's text ends in
vocabulary.text            u8  [N], UTF-8
layers.<layer>.ids         u32 [T, k]
layers.<layer>.weights     f32 [T, k]
layers.<layer>.entropy     f32 [T], bits
"""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint import write_safetensors
from coterie.checkpoint.files import show
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.checkpoint.strict_json import parse
from coterie.errors import ArgumentError, CheckpointError
from coterie.inspect.trace import MAX_LAYERS, LayerTrace, Trace

FORMAT, VERSION = "coterie-routing-trace", "1"
_KEYS = {"format", "version", "model", "fingerprint", "n_layers", "window", "experts"}
_PARTS = ("ids", "weights", "entropy")
_VOCABULARY = ("tokens", "vocabulary.tokens", "vocabulary.ends", "vocabulary.text")


def save(trace: Trace, path: str | Path) -> None:
    """Write the trace to `path`, whole or not at all."""
    texts = [trace.texts[token].encode("utf-8") for token in _vocabulary(trace.tokens).tolist()]
    tensors = {
        "tokens": trace.tokens,
        "vocabulary.tokens": _vocabulary(trace.tokens),
        "vocabulary.ends": np.cumsum([len(text) for text in texts]).astype(np.uint64),
        "vocabulary.text": np.frombuffer(b"".join(texts), np.uint8),
    }
    for layer in trace.layers:
        tensors |= {f"layers.{layer.layer}.{part}": getattr(layer, part) for part in _PARTS}
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": trace.model,
        "fingerprint": trace.fingerprint,
        "n_layers": str(trace.n_layers),
        "window": str(trace.window),
        "experts": json.dumps([[layer.layer, layer.n_experts] for layer in trace.layers]),
    }
    write_safetensors(Path(path), tensors, metadata)


def read(path: str | Path) -> Trace:
    """The trace in the file at `path`; `CheckpointError` for whatever is wrong with it."""
    path = Path(path)
    with SafetensorsFile(path) as file:
        about = _metadata(file.metadata, path)
        experts = _experts(about["experts"], path)
        names = {*_VOCABULARY, *(f"layers.{layer}.{part}" for layer, _ in experts for part in _PARTS)}
        if file.tensors.keys() != names:
            odd = sorted(file.tensors.keys() ^ names)
            raise _lie(path, f"tensors that are missing or too many: {show(odd[:3])}", "those of the layers it names")
        # Copied: the numbers are looked at for long, and a map ends the process when somebody cuts the file.
        arrays = {name: file.array(name).copy() for name in names}
    try:
        return Trace(
            model=about["model"],
            fingerprint=about["fingerprint"],
            n_layers=_number(about["n_layers"], path),
            window=_number(about["window"], path),
            tokens=arrays["tokens"],
            texts=_texts(arrays, path),
            layers=tuple(
                LayerTrace(layer, n_experts, *(arrays[f"layers.{layer}.{part}"] for part in _PARTS))
                for layer, n_experts in experts
            ),
        )
    except ArgumentError as error:
        raise CheckpointError(f"{path}: {error}", code="trace") from error


def _vocabulary(tokens: np.ndarray) -> np.ndarray:
    return np.unique(tokens)


def _metadata(found: Mapping[str, str], path: Path) -> Mapping[str, str]:
    if found.get("format") != FORMAT:
        raise _lie(path, "a safetensors file without a routing trace", "one that `coterie inspect --record` wrote")
    if found.get("version") != VERSION:
        raise _lie(path, f"version {show(found.get('version'))}", f"version {VERSION}")
    if found.keys() != _KEYS:
        raise _lie(path, f"metadata that is missing or too much: {show(sorted(found.keys() ^ _KEYS)[:3])}", "none")
    if len(found["fingerprint"]) != 64 or not set(found["fingerprint"]) <= set("0123456789abcdef"):
        raise _lie(path, f"the fingerprint {show(found['fingerprint'])}", "64 hexadecimal digits")
    return found


def _experts(text: str, path: Path) -> list[tuple[int, int]]:
    value = parse(text.encode("utf-8"), f"{path}: experts", prefix="trace")
    if not isinstance(value, list) or len(value) > MAX_LAYERS or not all(map(_is_pair, value)):
        raise _lie(path, f"experts {show(text)}", "a list of [layer, number of experts]")
    return [(layer, n_experts) for layer, n_experts in value]


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(type(number) is int for number in entry)


def _number(text: str, path: Path) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _lie(path, f"the number {show(text)}", "decimal digits")
    return int(text)


def _texts(arrays: Mapping[str, np.ndarray], path: Path) -> dict[int, str]:
    tokens, ends, text = (arrays[name] for name in _VOCABULARY[1:])
    is_sound = tokens.dtype == np.uint32 and ends.dtype == np.uint64 and text.dtype == np.uint8
    if not is_sound or {tokens.ndim, ends.ndim, text.ndim} != {1} or len(tokens) != len(ends):
        raise _lie(path, "a vocabulary of other dtypes or shapes", "u32 [U], u64 [U] and u8 [N]")
    if not np.array_equal(tokens, _vocabulary(arrays["tokens"])):
        raise _lie(path, "a vocabulary of other tokens than the text's", "each of them once, in order")
    edges = [0, *ends.tolist()]
    if edges != sorted(edges) or edges[-1] != len(text):
        raise _lie(path, "token texts that overlap or leave bytes over", "one after the other")
    data = text.tobytes()
    try:
        pieces = [data[begin:end].decode("utf-8") for begin, end in pairwise(edges)]
    except UnicodeDecodeError as error:
        raise _lie(path, "a token text that is not UTF-8", "UTF-8") from error
    return dict(zip(tokens.tolist(), pieces, strict=True))


def _lie(path: Path, found: str, expected: str) -> CheckpointError:
    return CheckpointError(f"{path}: found {found}, expected {expected}; record the trace again", code="trace")
