"""The header of a safetensors file: parsed once, validated once, in a strict order, each cause with a code of its own.

    8 bytes       N, the header's length, little-endian
    N bytes       a JSON object {name: {"dtype", "shape", "data_offsets": [begin, end]}}, spaces may follow it
    the rest      the tensors' bytes, row-major, little-endian; every byte belongs to exactly one tensor

`__metadata__` may map strings to strings. Nothing after `parse_header` checks again. Format: safetensors 0.x, README.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from coterie.checkpoint.files import show
from coterie.checkpoint.strict_json import parse
from coterie.errors import CheckpointError

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{letter}{8 * size}": np.dtype(f"<{letter.lower()}{size}") for letter in "IU" for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
MAX_HEADER = 100_000_000
MAX_TENSORS = 100_000
"""In one file; a model of a thousand experts in sixty layers has more, in many files."""
MAX_RANK = 32
MAX_NAME = 1024
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}
_QUOTES_AN_ENTRY = 12


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in its file: `begin` is counted from the file's first byte."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def header_length(first: bytes, file_size: int, what: str) -> int:
    """The header's length from the file's `first` bytes (up to a few hundred), checked against the file's size."""
    if file_size == 0:
        raise _damaged(what, "file_empty", "the file is empty", "a safetensors file")
    if file_size < 8:
        found = f"only {file_size} bytes"
        raise _damaged(what, "file_too_short", found, "at least the 8 bytes of a header's length")
    length = int.from_bytes(first[:8], "little")
    if 0 < length <= min(MAX_HEADER, file_size - 8):
        return length
    _refuse_other_kinds(first, what)
    if length == 0:
        raise _damaged(what, "header_empty", "a header of length 0", "a JSON object")
    if length > MAX_HEADER:
        found = f"a header length of {length} bytes"
        raise _damaged(what, "header_too_large", found, f"at most {MAX_HEADER}")
    found = f"a header length of {length} bytes in a file of {file_size}"
    raise _damaged(what, "header_beyond_file", found, f"at most {file_size - 8}")


def parse_header(header: bytes, file_size: int, what: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors, in the order of their bytes, and the metadata; `CheckpointError` for the first wrong thing."""
    if not header.startswith(b"{"):
        _refuse_other_kinds(header, what)
        code = "header_leading_space" if header.lstrip().startswith(b"{") else "header_not_object"
        raise _damaged(what, code, f"a header that starts with {show(header[:16])}", 'a JSON object from its "{" on')
    if header.count(b"{") > MAX_TENSORS + 2 or header.count(b'"') > _QUOTES_AN_ENTRY * MAX_TENSORS:
        raise _damaged(what, "too_many_tensors", "more entries than a model has", f"at most {MAX_TENSORS}")
    entries = parse(header, f"{what}: header", CheckpointError, prefix="header")
    if not isinstance(entries, dict):
        raise _damaged(what, "header_not_object", f"a JSON {type(entries).__name__}", "an object")
    metadata = _metadata(entries.pop("__metadata__", None), what)
    start = 8 + len(header)
    tensors = [_tensor(name, entry, start, what) for name, entry in entries.items()]
    return _tile(tensors, start, file_size, what), metadata


def _metadata(value: Any, what: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _damaged(what, "metadata", f"__metadata__ {show(value)}", "an object of strings")
    return value


def _tensor(name: str, entry: Any, start: int, what: str) -> TensorInfo:
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise _damaged(what, "tensor_name", f"the tensor name {show(name)}", f"1 to {MAX_NAME} printable characters")
    where = f"{what}: tensor {show(name, 200)}"
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS:
        raise _damaged(where, "tensor_entry", show(entry), 'exactly "dtype", "shape" and "data_offsets"')
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise _damaged(where, "dtype_unknown", f"dtype {show(entry['dtype'])}", f"one of {', '.join(DTYPES)}")
    shape = _sizes(entry["shape"], where, "shape")
    if len(shape) > MAX_RANK:
        raise _damaged(where, "rank_too_large", f"{len(shape)} axes", f"at most {MAX_RANK}")
    offsets = _sizes(entry["data_offsets"], where, "data_offsets")
    if len(offsets) != 2:
        raise _damaged(where, "data_offsets", f"data_offsets {show(list(offsets))}", "[begin, end]")
    begin, end = offsets
    if begin > end:
        raise _damaged(where, "offsets_reversed", f"data_offsets [{begin}, {end}]", "begin <= end")
    nbytes = prod(shape) * dtype.itemsize
    if nbytes >= 2**63:
        raise _damaged(where, "shape_overflow", f"shape {list(shape)}, {nbytes} bytes", "less than 2^63 bytes")
    if nbytes != end - begin:
        found = f"{end - begin} bytes of data for {entry['dtype']} {list(shape)}"
        raise _damaged(where, "size_mismatch", found, f"{nbytes} bytes")
    return TensorInfo(name, dtype, shape, start + begin, nbytes)


def _sizes(value: Any, where: str, key: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise _damaged(where, key, f"{key} {show(value)}", "a list of integers that are not negative")
    return tuple(value)


def _tile(tensors: list[TensorInfo], start: int, file_size: int, what: str) -> dict[str, TensorInfo]:
    """Each tensor must begin where the one before it ended, and the last one must end with the file."""
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.nbytes))
    at, before = start, "the header"
    for tensor in tensors:
        where = f"{what}: tensor {show(tensor.name, 200)}"
        if tensor.begin + tensor.nbytes > file_size:
            found = f"data up to byte {tensor.begin + tensor.nbytes} of a file of {file_size} bytes"
            raise _damaged(where, "offsets_beyond_file", found, "data inside the file: it is cut short")
        if tensor.begin < at:
            found = f"data that begins {at - tensor.begin} bytes before {before} ends"
            raise _damaged(where, "tensor_overlap", found, "tensors that do not overlap")
        if tensor.begin > at:
            found = f"{tensor.begin - at} bytes between {before} and this tensor that belong to none"
            raise _damaged(where, "tensor_hole", found, "no hole")
        at, before = at + tensor.nbytes, show(tensor.name, 200)
    if at != file_size:
        raise _damaged(what, "trailing_bytes", f"{file_size - at} bytes behind {before}", "the file to end there")
    return {tensor.name: tensor for tensor in tensors}


def _refuse_other_kinds(first: bytes, what: str) -> None:
    """Name the kinds of file that are most often found under a safetensors name."""
    text = first[:256].lstrip().lower()
    fetch = "fetch the real file (for example: git lfs pull, or the hub's own client)"
    if text.startswith(b"version https://git-lfs"):
        raise _other(what, "git_lfs_pointer", f"a Git LFS pointer, not the weights that it stands for; {fetch}")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise _other(what, "html_page", f"a web page, probably an error message saved as weights; {fetch}")
    if first.startswith(b"PK\x03\x04"):
        raise _other(what, "zip_file", "a zip archive, as torch.save writes it; it is never unpacked: use safetensors")
    if first[:1] == b"\x80" and first[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise _other(what, "pickle_file", "a Python pickle; it can run code and is never loaded: use safetensors")
    if first.startswith(b"GGUF"):
        raise _other(what, "gguf_file", "a GGUF file; convert an original checkpoint with `coterie convert`")


def _other(what: str, code: str, text: str) -> CheckpointError:
    return CheckpointError(f"{what}: expected a safetensors file, found {text}", code=code)


def _damaged(where: str, code: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: found {found}, expected {expected}; the file is damaged or not safetensors: fetch or write it again",
        code=code,
    )
