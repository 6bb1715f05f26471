"""Trace files that lie: each is refused by name, none is believed."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.checkpoint import write_safetensors
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.errors import ArgumentError, CheckpointError
from coterie.inspect import LayerTrace, Report, Trace, read, save
from inspection.traces import layer, trace

Tensors = dict[str, np.ndarray]
Metadata = dict[str, str]


@pytest.fixture
def stored(tmp_path: Path, rng: np.random.Generator) -> tuple[Tensors, Metadata]:
    made = trace(rng, layer(rng, 0, 30, 8, 2), layer(rng, 2, 30, 4, 3), n_layers=4)
    save(made, tmp_path / "sound.trace")
    with SafetensorsFile(tmp_path / "sound.trace") as file:
        return {name: file.array(name).copy() for name in file.tensors}, dict(file.metadata)


def put(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors, Metadata], None]:
    return lambda tensors, _: tensors.update({name: change(tensors[name])})


def at(name: str, place: Any, value: float) -> Callable[[Tensors, Metadata], None]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return put(name, change)


def say(**fields: str) -> Callable[[Tensors, Metadata], None]:
    return lambda _, metadata: metadata.update(fields)


LIES: dict[str, tuple[Callable[[Tensors, Metadata], Any], str]] = {
    "expert out of range": (at("layers.0.ids", (3, 1), 8), "expert 8"),
    "one expert twice": (put("layers.2.ids", np.zeros_like), "one expert twice"),
    "NaN weight": (at("layers.0.weights", (0, 0), np.nan), "NaN"),
    "infinite weight": (at("layers.0.weights", (0, 0), np.inf), "NaN or infinity"),
    "NaN entropy": (at("layers.0.entropy", 0, np.nan), "entropy"),
    "entropy above its bound": (at("layers.0.entropy", 0, 3.1), "entropy"),
    "negative entropy": (at("layers.0.entropy", 0, -0.1), "entropy"),
    "fewer rows": (put("layers.0.ids", lambda a: a[:-1]), r"\[29, 2\]"),
    "a layer of fewer tokens": (
        lambda t, _: t.update({f"layers.0.{p}": t[f"layers.0.{p}"][:-1] for p in ("ids", "weights", "entropy")}),
        "29 tokens",
    ),
    "more experts a token than there are": (say(experts="[[0, 8], [2, 2]]"), "3 experts a token of 2|expert"),
    "ids of another dtype": (put("layers.0.ids", lambda a: a.astype(np.int64)), "int64"),
    "weights of another dtype": (put("layers.0.weights", lambda a: a.astype(np.float16)), "float16"),
    "ids of another rank": (put("layers.0.ids", lambda a: a[..., None]), "rank 3"),
    "no tokens": (lambda t, _: t.update({n: a[:0] for n, a in t.items()}), "no tokens|0 tokens"),
    "a missing tensor": (lambda t, _: t.pop("layers.2.entropy"), "missing or too many"),
    "a stray tensor": (lambda t, _: t.update({"layers.1.ids": t["layers.0.ids"]}), "missing or too many"),
    "a token without a text": (at("tokens", 0, 99), "other tokens"),
    "vocabulary out of order": (put("vocabulary.tokens", lambda a: a[::-1].copy()), "other tokens"),
    "text ends that fall": (put("vocabulary.ends", lambda a: a[::-1].copy()), "overlap"),
    "texts beyond the bytes": (at("vocabulary.ends", -1, 10_000), "overlap or leave"),
    "bytes left over": (put("vocabulary.text", lambda a: np.append(a, a[:1])), "overlap or leave"),
    "texts that are not UTF-8": (put("vocabulary.text", lambda a: np.full_like(a, 0xFF)), "UTF-8"),
    "ends of another dtype": (put("vocabulary.ends", lambda a: a.astype(np.int32)), "other dtypes"),
    "another format": (say(format="mlx"), "without a routing trace"),
    "another version": (say(version="2"), "version"),
    "metadata too much": (say(extra="1"), "metadata"),
    "metadata missing": (lambda _, m: m.pop("window"), "metadata"),
    "a fingerprint that is none": (say(fingerprint="g" * 64), "fingerprint"),
    "a number that is none": (say(n_layers="-4"), "number"),
    "a huge number": (say(n_layers="9" * 18), "layers"),
    "a number in other digits": (say(window="٣"), "number"),
    "windows of no token": (say(window="0"), "windows of 0"),
    "fewer layers than the last one's number": (say(n_layers="2"), "layers with experts"),
    "experts that are no list": (say(experts="{}"), "experts"),
    "experts that are no numbers": (say(experts="[[0, true], [2, 4]]"), "experts"),
    "experts that are no JSON": (say(experts="[[0, 8"), "experts"),
    "too many experts": (say(experts="[[0, 1000000], [2, 4]]"), "1000000 experts"),
    "layers out of order": (say(experts="[[2, 4], [0, 8]]"), "in order"),
    "a negative layer": (say(experts="[[-1, 8], [2, 4]]"), "missing or too many|different ones"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_refused_by_name(name: str, stored: tuple[Tensors, Metadata], tmp_path: Path) -> None:
    tensors, metadata = stored
    lie, message = LIES[name]
    lie(tensors, metadata)
    path = tmp_path / "lie.trace"
    write_safetensors(path, tensors, metadata)
    with pytest.raises(CheckpointError, match=message) as refusal:
        read(path)
    assert str(path) in str(refusal.value)
    assert refusal.value.code.startswith("trace")


def test_every_byte_lost_or_changed_is_refused_or_still_adds_up(rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    save(trace(rng, layer(rng, 0, 6, 4, 2)), path)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            read(path)
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        with contextlib.suppress(CheckpointError):
            Report.of(read(path))


def test_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    for path, code in ((tmp_path / "none", "file_missing"), (tmp_path, "not_a_file")):
        with pytest.raises(CheckpointError) as refusal:
            read(path)
        assert refusal.value.code == code


def test_a_trace_made_by_hand_is_checked_as_well(rng: np.random.Generator) -> None:
    with pytest.raises(ArgumentError, match="expert 9"):
        LayerTrace(0, 8, np.full((1, 1), 9, np.uint32), np.ones((1, 1), np.float32), np.zeros(1, np.float32))
    sound = layer(rng, 0, 3, 4, 2)
    with pytest.raises(ArgumentError, match="no text for token 5"):
        Trace("m", "0" * 64, 1, 8, np.full(3, 5, np.uint32), {}, (sound,))


def test_texts_of_any_kind_survive(rng: np.random.Generator, tmp_path: Path) -> None:
    made = trace(rng, layer(rng, 0, 200, 8, 2))
    save(made, tmp_path / "a")
    assert dict(read(tmp_path / "a").texts) == dict(made.texts)
    with SafetensorsFile(tmp_path / "a") as file:
        assert json.loads(file.metadata["experts"]) == [[0, 8]]
