"""A prompt cache in a file, so that a long prompt is read once and not once a day.

A safetensors file: "token_ids" u32 [n], and for each layer that has its own "layers.<i>.keys" and "layers.<i>.values"
f32 [heads, kept, dims], the positions that are kept in order, up to the last. Its metadata say what it is, the
fingerprint of the model that it belongs to, and the SHA-256 of the tensors. It is written whole or not at all, and read
strictly: a file of another model, or one that was damaged, is refused by name.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coterie.checkpoint import write_safetensors
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.errors import CheckpointError
from coterie.models.architecture import Architecture
from coterie.runtime.cache import CHUNK, KeyValueCache, LayerStore

_KIND = "coterie prompt cache"
_VERSION = "1"


def write(path: Path, model: str, token_ids: Sequence[int], cache: KeyValueCache) -> None:
    """Write what the cache has, which are these tokens, for the model with this fingerprint."""
    tensors = {"token_ids": np.array(token_ids, np.uint32)}
    for index, store in cache.own_layers.items():
        tensors[f"layers.{index}.keys"], tensors[f"layers.{index}.values"] = store.kept()
    metadata = {"kind": _KIND, "version": _VERSION, "model": model, "sha256": _digest(tensors)}
    write_safetensors(path, tensors, metadata)


def read(
    path: Path, architecture: Architecture, model: str, chunk: int = CHUNK
) -> tuple[tuple[int, ...], KeyValueCache]:
    """The tokens, and a cache that has seen them and is given `chunk` at a time; `CheckpointError` for the first thing
    that is wrong with the file.
    """
    with SafetensorsFile(path) as file:
        _check_metadata(path, file.metadata, model)
        tensors = {name: file.array(name) for name in file.tensors}
        token_ids = _token_ids(path, tensors, architecture)
        cache = KeyValueCache(architecture, chunk=chunk, limit=architecture.context_length)
        layers = cache.own_layers
        expected = {"token_ids", *(f"layers.{index}.{part}" for index in layers for part in ("keys", "values"))}
        if tensors.keys() != expected:
            wrong = sorted(tensors.keys() ^ expected)[0]
            found = f"the tensor {wrong!a}" if wrong in tensors else f"no tensor {wrong!a}"
            raise _refused(path, "tensors", found, "the tokens and the layers of the model, and nothing else")
        for index, store in layers.items():
            parts = [tensors[f"layers.{index}.{part}"] for part in ("keys", "values")]
            _check_layer(path, index, parts, store, len(token_ids), architecture.layers[index].attention.window)
        if file.metadata.get("sha256") != _digest(tensors):
            raise _refused(path, "damaged", "values whose SHA-256 is another than the file's own", "the same")
        for index, store in layers.items():
            store.restore(tensors[f"layers.{index}.keys"], tensors[f"layers.{index}.values"], len(token_ids))
        file.check_unchanged()
    cache.length = len(token_ids)
    return token_ids, cache


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check_metadata(path: Path, metadata: Mapping[str, str], model: str) -> None:
    for key, expected in (("kind", _KIND), ("version", _VERSION)):
        if metadata.get(key) != expected:
            raise _refused(path, key, f"the {key} {metadata.get(key)!a}", f"{expected!a}")
    found = metadata.get("model", "")
    if found != model:
        raise _refused(path, "model", f"the cache of another model, {found[:16]!a}", f"of this one, '{model[:16]}'")


def _token_ids(path: Path, tensors: Mapping[str, np.ndarray], architecture: Architecture) -> tuple[int, ...]:
    ids = tensors.get("token_ids")
    if ids is None or ids.dtype != np.uint32 or ids.ndim != 1:
        raise _refused(path, "tokens", "no list of token ids", "the tensor 'token_ids', U32 of one axis")
    if not 1 <= len(ids) <= architecture.context_length:
        raise _refused(path, "tokens", f"{len(ids)} tokens", f"1 to {architecture.context_length}")
    if ids.max() >= architecture.vocab_size:
        raise _refused(path, "tokens", f"the token {ids.max()}", f"less than {architecture.vocab_size}")
    return tuple(ids.tolist())


def _check_layer(
    path: Path, index: int, parts: Sequence[np.ndarray], store: LayerStore, length: int, window: int | None
) -> None:
    """The layer's heads and dimensions, and all positions that the next token sees."""
    n_kept = parts[0].shape[1] if parts[0].ndim == 3 else 0
    least = length if window is None else min(length, window - 1)
    for part, own in zip(parts, store.stores, strict=True):
        if part.dtype != np.float32 or part.ndim != 3 or part.shape != (own.shape[0], n_kept, own.shape[2]):
            found, expected = f"{part.dtype} {list(part.shape)}", f"float32 {[own.shape[0], n_kept, own.shape[2]]}"
            raise _refused(path, "shape", f"{found} for layer {index}", expected)
    if not least <= n_kept <= length:
        raise _refused(path, "shape", f"{n_kept} positions of layer {index}", f"{least} to {length}")
    if not all(np.isfinite(part).all() for part in parts):
        raise _refused(path, "not_finite", f"NaN or infinity in layer {index}", "finite numbers")


def _refused(path: Path, code: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: found {found}, expected {expected}; delete the file and let it be written again",
        code=f"prompt_cache_{code}",
    )
