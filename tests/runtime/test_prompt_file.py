"""Prompt caches in files: what is written comes back to the bit, and a damaged or foreign file is refused by name."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from coterie.checkpoint import files
from coterie.errors import CheckpointError, RequestError
from coterie.runtime import Model, load
from coterie.runtime.prompt_cache import PromptCache
from models import tiny

Tensors = dict[str, np.ndarray]
FAMILIES = ["gemma4_per_layer", "gpt_oss", "deepseek_v3"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return load(tiny.checkpoint(request.param, "4 bits g64"))


@pytest.fixture(scope="module")
def gemma() -> Model:
    return load(tiny.checkpoint("gemma4", "4 bits g64"))


def used(model: Model, length: int = 40) -> PromptCache:
    cache = model.prompt_cache()
    model.generate(tiny.token_ids(length), cache=cache, max_tokens=3)
    return cache


@pytest.mark.parametrize("length", [2, 15, 16, 40, 90])
@pytest.mark.parametrize("chunk", [8, 512])
def test_a_file_gives_back_what_was_saved(
    model: Model, length: int, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("prompt_cache", "prompt_file"):
        monkeypatch.setattr(f"coterie.runtime.{module}.CHUNK", chunk)
    cache = used(model, length)
    cache.save(tmp_path / "cache")
    again = model.prompt_cache(tmp_path / "cache")
    assert again.token_ids == cache.token_ids
    asked = [*cache.token_ids, *tiny.token_ids(5, 1)]
    first, second = (model.generate(asked, cache=one, max_tokens=6, logprobs=3) for one in (cache, again))
    assert (first.token_ids, first.logprobs) == (second.token_ids, second.logprobs)
    assert first.n_cached_tokens == second.n_cached_tokens == len(asked) - 5


def test_other_readers_understand_the_file(gemma: Model, tmp_path: Path) -> None:
    cache = used(gemma)
    cache.save(tmp_path / "cache.safetensors")
    tensors = load_file(tmp_path / "cache.safetensors")
    assert tuple(tensors["token_ids"].tolist()) == cache.token_ids
    assert tensors["layers.1.keys"].shape == (1, len(cache.token_ids), 64)


def test_an_empty_cache_and_one_in_use_are_not_saved(gemma: Model, tmp_path: Path) -> None:
    cache = gemma.prompt_cache()
    with pytest.raises(RequestError):
        cache.save(tmp_path / "cache")
    cache = used(gemma)
    running = iter(gemma.stream(tiny.token_ids(9), cache=cache, max_tokens=20, temperature=6.0, seed=1))
    next(running)
    with pytest.raises(RequestError):
        cache.save(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["create", "write_at", "sync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(
    gemma: Model, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = tmp_path / "cache", used(gemma)
    cache.save(path)
    before = path.read_bytes()

    def full(*_arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(files.disk, call, full)
    with pytest.raises(CheckpointError) as refused:
        used(gemma, 20).save(path)
    assert refused.value.code == "write_error"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Files that are none --------------------------------------------------------------------------------------------------


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Tensors, dict[str, str]], None]:
    def apply(tensors: Tensors, _metadata: dict[str, str]) -> None:
        tensors[name] = np.ascontiguousarray(change(tensors[name]))

    return apply


def metadata(**items: str) -> Callable[[Tensors, dict[str, str]], None]:
    return lambda _tensors, own: own.update(items)


def poked(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.flat[7] = value
    return array


def without(name: str) -> Callable[[Tensors, dict[str, str]], None]:
    def apply(tensors: Tensors, _metadata: dict[str, str]) -> None:
        del tensors[name]

    return apply


FAULTS: dict[str, tuple[Callable[[Tensors, dict[str, str]], None], str]] = {
    "another kind": (metadata(kind="mlx"), "kind"),
    "a version of the future": (metadata(version="2"), "version"),
    "another model": (metadata(model="0" * 64), "model"),
    "another model with controls": (metadata(model="\x1b[31m" * 9), "model"),
    "no digest": (metadata(sha256=""), "damaged"),
    "one value changed": (changed("layers.1.keys", lambda a: poked(a, 0.5)), "damaged"),
    "one token changed": (changed("token_ids", lambda a: poked(a, 5)), "damaged"),
    "keys for values": (lambda t, _: t.update({"layers.0.keys": t["layers.0.values"]}), "damaged"),
    "NaN": (changed("layers.0.values", lambda a: poked(a, np.nan)), "not_finite"),
    "infinity": (changed("layers.1.keys", lambda a: poked(a, np.inf)), "not_finite"),
    "no tokens": (without("token_ids"), "tokens"),
    "no token": (changed("token_ids", lambda a: a[:0]), "tokens"),
    "tokens of another dtype": (changed("token_ids", lambda a: a.astype(np.int64)), "tokens"),
    "tokens in a matrix": (changed("token_ids", lambda a: a[None]), "tokens"),
    "too many tokens": (changed("token_ids", lambda a: np.resize(a, 5000)), "tokens"),
    "tokens outside of the vocabulary": (changed("token_ids", lambda a: poked(a, tiny.VOCABULARY)), "tokens"),
    "a token too few": (changed("token_ids", lambda a: a[:-1]), "shape"),
    "a token too many": (changed("token_ids", lambda a: np.append(a, a[:1])), "shape"),
    "a layer missing": (without("layers.2.keys"), "tensors"),
    "a layer too many": (lambda t, _: t.update({"layers.9.keys": t["layers.0.keys"]}), "tensors"),
    "keys of another dtype": (changed("layers.0.keys", lambda a: a.astype(np.float16)), "shape"),
    "keys of another rank": (changed("layers.0.keys", lambda a: a[0]), "shape"),
    "keys of other heads": (changed("layers.0.keys", lambda a: a[:1]), "shape"),
    "values of other dims": (changed("layers.1.values", lambda a: a[..., :-1]), "shape"),
    "values of fewer positions": (changed("layers.1.values", lambda a: a[:, 1:]), "shape"),
    "a window with too little": (
        lambda t, _: t.update(
            {f"layers.0.{part}": t[f"layers.0.{part}"][:, -14:].copy() for part in ("keys", "values")}
        ),
        "shape",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_lies_is_refused_by_name(gemma: Model, fault: str, tmp_path: Path) -> None:
    path, (damage, code) = tmp_path / "cache", FAULTS[fault]
    used(gemma).save(path)
    tensors, own = load_file(path), dict(metadata_of(path))
    damage(tensors, own)
    save_file(tensors, path, own)
    with pytest.raises(CheckpointError) as refused:
        gemma.prompt_cache(path)
    assert refused.value.code == f"prompt_cache_{code}"
    assert str(path) in str(refused.value)
    assert "\x1b" not in str(refused.value)


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda _data: b"", "file_empty"),
        (lambda data: data[:-1], "offsets_beyond_file"),
        (lambda data: data + b"\0", "trailing_bytes"),
        (lambda data: b"\xff" * 8 + data[8:], "header_too_large"),
        (lambda _data: b"some notes of mine", "header_too_large"),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(
    gemma: Model, damage: Callable[[bytes], bytes], code: str, tmp_path: Path
) -> None:
    path = tmp_path / "cache"
    used(gemma).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError) as refused:
        gemma.prompt_cache(path)
    assert refused.value.code == code


def test_a_place_without_a_file(gemma: Model, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, code in ((tmp_path / "no", "file_missing"), (tmp_path, "not_a_file"), (tmp_path / "fifo", "not_a_file")):
        with pytest.raises(CheckpointError) as refused:
            gemma.prompt_cache(path)
        assert refused.value.code == code


def test_a_file_of_the_same_model_in_another_format_is_refused(tmp_path: Path, gemma: Model) -> None:
    used(load(tiny.checkpoint("gemma4", "8 bits g64"))).save(tmp_path / "cache")
    with pytest.raises(CheckpointError) as refused:
        gemma.prompt_cache(tmp_path / "cache")
    assert refused.value.code == "prompt_cache_model"
