"""Single files: every cause is refused by its own code, with a message that says where, what was found and expected."""

import json
import pickle
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from checkpoint.attacks import F32, described, good, one, raw
from coterie.checkpoint.header import MAX_HEADER, MAX_TENSORS
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.errors import CheckpointError


@dataclass
class Row:
    """A bad file, the code of its cause, and words that the message must have."""

    name: str
    make: Callable[[], bytes]
    code: str
    says: tuple[str, ...] = ()


def _zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", "x")
    return buffer.getvalue()


def _many_keys(n: int) -> bytes:
    return raw("{" + ",".join(f'"k{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(n)) + "}")


def _two(begin: int) -> bytes:
    """Tensor "a" in bytes 0 to 8 and tensor "b" in the 8 bytes from `begin` on."""
    return described({"a": F32, "b": {**F32, "data_offsets": [begin, begin + 8]}}, bytes(begin + 8))


def _gguf() -> bytes:
    """Version 3 and counts behind the magic."""
    return b"GGUF\x03\0\0\0" + b"\x10" * 64


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"

ROWS = [
    Row("empty", lambda: b"", "file_empty", ("empty",)),
    *[Row(f"{n} bytes", lambda n=n: bytes(n), "file_too_short", (f"{n} bytes", "8 bytes")) for n in range(1, 8)],
    Row("header length 0", lambda: raw(b""), "header_empty", ("length 0",)),
    Row("header length 2^63", lambda: raw(b"{}", length=2**63), "header_too_large", (str(2**63), str(MAX_HEADER))),
    Row("header one byte too long", lambda: raw(b"{}", length=3), "header_beyond_file", ("3 bytes", "10")),
    Row("header of 101 MB", lambda: raw(b"{", length=101_000_000), "header_too_large", ("101000000",)),
    Row("not UTF-8", lambda: raw(b'{"\xff": 1}'), "header_not_utf8", ("byte 2", "UTF-8")),
    Row("an array", lambda: raw("[1]"), "header_not_object", ("object",)),
    Row("a string", lambda: raw('"x"'), "header_not_object", ("object",)),
    Row("broken JSON", lambda: raw('{"t": '), "header_not_json", ("JSON",)),
    Row("two JSON values", lambda: raw("{}{}"), "header_not_json", ("JSON",)),
    Row("leading space", lambda: raw(" {}"), "header_leading_space", ("starts with",)),
    Row("duplicate tensor", lambda: raw('{"t":1,"t":1}'), "header_duplicate_key", ("'t'", "twice")),
    Row("duplicate field", lambda: raw('{"t":{"dtype":"F32","dtype":"F32"}}'), "header_duplicate_key", ("dtype",)),
    Row("deep nesting", lambda: raw('{"t":' + "[" * 100_000 + "]" * 100_000 + "}"), "header_nested", ("nesting",)),
    Row("deep objects", lambda: raw('{"t":' * 100_000 + "1" + "}" * 100_000), "header_nested", ("nesting",)),
    Row("a million tensors", lambda: _many_keys(1_000_000), "too_many_tensors", (str(MAX_TENSORS),)),
    Row("a million numbers", lambda: raw("{" + ",".join(f'"k{i}":0' for i in range(10**6)) + "}"), "too_many_tensors"),
    Row("overlap", lambda: _two(4), "tensor_overlap", ("'a'", "'b'", "4 bytes")),
    Row("same bytes twice", lambda: described({"a": F32, "b": F32}, bytes(8)), "tensor_overlap", ("'a'", "'b'")),
    Row("hole", lambda: _two(12), "tensor_hole", ("4 bytes", "'a'", "'b'")),
    Row("hole at the front", lambda: one(bytes(12), data_offsets=[4, 12]), "tensor_hole", ("4 bytes", "header")),
    Row("trailing bytes", lambda: one(bytes(11)), "trailing_bytes", ("3 bytes", "'t'")),
    Row("only trailing bytes", lambda: raw("{}", bytes(1)), "trailing_bytes", ("1 bytes", "header")),
    Row("cut short", lambda: one(bytes(7)), "offsets_beyond_file", ("cut short",)),
    Row("offsets reversed", lambda: one(data_offsets=[8, 0]), "offsets_reversed", ("[8, 0]", "begin <= end")),
    *[
        Row(f"offsets {value!r}", lambda value=value: one(data_offsets=value), "data_offsets", ("data_offsets", "'t'"))
        for value in ([-1, 7], [0.0, 8.0], ["0", "8"], [False, 8], [0, True], [0], [0, 4, 8], 8, "08", {}, [None, 8])
    ],
    *[
        Row(f"shape {value!r}", lambda value=value: one(shape=value), "shape", ("shape", "'t'", "not negative"))
        for value in ([-2], [2.0], ["2"], [True, 2], 2, "2", {}, [[2]], [None])
    ],
    Row("a number of 5000 digits", lambda: raw('{"t":{"shape":[' + "9" * 5000 + "]}}"), "header_number", ("64 bits",)),
    Row("a size of 2^64", lambda: one(shape=[2**64]), "header_number", ("64 bits",)),
    Row("NaN", lambda: raw('{"t":NaN}'), "header_number", ("NaN", "finite")),
    Row("1e999", lambda: raw('{"t":1e999}'), "header_number", ("1e999",)),
    Row("product overflow", lambda: one(shape=[2**32, 2**32]), "shape_overflow", ("2^63", "'t'")),
    Row("product wraps to 0", lambda: one(b"", shape=[2**32, 2**32, 0, 2**62], data_offsets=[0, 1]), "size_mismatch"),
    Row("rank 33", lambda: one(bytes(4), shape=[1] * 33, data_offsets=[0, 4]), "rank_too_large", ("33", "32")),
    Row("too few bytes", lambda: one(shape=[3]), "size_mismatch", ("8 bytes", "12 bytes", "F32 [3]")),
    Row("too many bytes", lambda: one(shape=[1]), "size_mismatch", ("8 bytes", "4 bytes")),
    *[
        Row(f"dtype {value!r}", lambda value=value: one(dtype=value), "dtype_unknown", ("'t'", "BF16"))
        for value in ("F33", "f32", "", 4, ["F32"], {}, "F4", "C64")
    ],
    *[Row(f"no {key}", lambda key=key: one(**{key: None}), "tensor_entry", ("exactly",)) for key in F32],
    Row("unknown field", lambda: one(extra=1), "tensor_entry", ("exactly",)),
    *[
        Row(f"entry {value!r}", lambda value=value: described({"t": value}, b""), "tensor_entry")
        for value in (1, [], "x", None)
    ],
    *[
        Row(
            f"metadata {value!r}", lambda value=value: described({"__metadata__": value}, b""), "metadata", ("strings",)
        )
        for value in (1, [], "x", {"a": 1}, {"a": {"b": "c"}}, {"a": None})
    ],
    Row("empty name", lambda: described({"": F32}, bytes(8)), "tensor_name", ("printable",)),
    Row("control characters", lambda: described({"a\x1b[2Jb": F32}, bytes(8)), "tensor_name", ("\\x1b",)),
    Row("half a surrogate", lambda: raw('{"\\ud800":' + json.dumps(F32) + "}", bytes(8)), "tensor_name", ("\\ud800",)),
    Row("endless name", lambda: described({"n" * 2000: F32}, bytes(8)), "tensor_name", ("1024",)),
    Row("Git LFS pointer", lambda: LFS, "git_lfs_pointer", ("LFS", "git lfs pull")),
    Row("web page", lambda: b"<!DOCTYPE html><html><body>404</body></html>", "html_page", ("web page",)),
    Row("web page as header", lambda: raw(b"<html>oops</html>"), "html_page", ("web page",)),
    Row("pickle", lambda: pickle.dumps({"w": list(range(100))}), "pickle_file", ("pickle", "never loaded")),
    Row("old pickle", lambda: pickle.dumps({"w": list(range(100))}, protocol=2), "pickle_file", ("pickle",)),
    Row("zip archive", _zip, "zip_file", ("zip",)),
    Row("GGUF", _gguf, "gguf_file", ("GGUF",)),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_refused_by_name(row: Row, tmp_path: Path, open_files: Callable[[], int]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(row.make())
    before = open_files()
    started = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    seconds = time.process_time() - started
    message = str(caught.value)
    assert caught.value.code == row.code, message
    for words in (str(path), "found", "expected", *row.says):
        assert words in message
    assert message.isprintable()
    assert len(message) < 1000
    assert open_files() == before
    assert seconds < 1.0


@pytest.mark.parametrize("code", ["header_too_large", "too_many_tensors"])
def test_a_limit_is_the_last_value_that_passes(code: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    if code == "header_too_large":
        path.write_bytes(raw(b"{}" + b" " * (MAX_HEADER - 2)))
    else:
        path.write_bytes(_many_keys(MAX_TENSORS))
    with SafetensorsFile(path) as file:
        assert len(file.tensors) == (0 if code == "header_too_large" else MAX_TENSORS)


def test_defined_results(tmp_path: Path) -> None:
    """Zero sizes, rank 0 and rank 32 are values, not faults."""
    tensors = {
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.float32(2.5).reshape(()),
        "last": np.zeros((4, 0), np.float16),
        "deep": np.ones((1,) * 32, np.float32),
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(good(tensors))
    with SafetensorsFile(path) as file:
        for name, expected in tensors.items():
            found = file.array(name)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert not found.flags.writeable
            np.testing.assert_array_equal(found, expected)
