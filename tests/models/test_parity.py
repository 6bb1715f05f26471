"""Logits of tiny random checkpoints against transformers and mlx-lm, both in f32, on the same stored weights.

The bound of 1e-5 on the relative L2 error leaves room for f32 implementations that sum in different orders (each is
about 1e-6 from the others), and none for a wrong formula: a dropped norm, a window off by one or a swapped expert shows
at 1e-3 or more.
"""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from coterie.checkpoint import open_checkpoint
from coterie.models.backend import Backend
from coterie.models.decoder import Decoder
from coterie.models.families import family_of
from coterie.models.weights import read_weights
from coterie.ops import dispatch
from coterie.runtime.cache import KeyValueCache
from models import references, tiny
from models.plain_backend import PlainBackend

BOUND = 1e-5
IDS = tiny.token_ids()
CASES = [(name, form) for name in tiny.MODELS for form in tiny.FORMATS]
CHUNKS = {
    "whole": [tiny.LENGTH],
    "prompt and single steps": [tiny.LENGTH - 6] + [1] * 6,
    "single steps": [1] * tiny.LENGTH,
    "chunks": [13, 13, 13, 9],
    "chunks and steps in turn": [20, 1, 1, 17, 1, 8],
}


@functools.cache
def decoder(folder: Path, plain: bool = False) -> Decoder:
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint.config)
    architecture = family.architecture(checkpoint.config)
    backend: Backend = PlainBackend() if plain else dispatch.decoder("cpu")
    weights = read_weights(architecture, checkpoint, family.name_map(checkpoint.config).drops)
    return Decoder(architecture, weights, backend)


def logits(made: Decoder, chunks: list[int]) -> np.ndarray:
    cache = KeyValueCache(made.architecture, chunk=max(chunks), limit=sum(chunks))
    ends = np.cumsum(chunks)
    return np.concatenate(
        [made.logits(made.hidden(IDS[end - n : end], cache)) for n, end in zip(chunks, ends, strict=True)]
    )


@functools.cache
def transformers_logits(name: str, form: str, dtype: str = "float32") -> np.ndarray:
    return references.transformers_logits(tiny.MODELS[name], tiny.checkpoint(name, form, dtype), IDS)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("way", ["whole", "prompt and single steps", "chunks"])
def test_logits_are_those_of_transformers(name: str, form: str, way: str) -> None:
    found = logits(decoder(tiny.checkpoint(name, form)), CHUNKS[way])
    assert relative_error(found, transformers_logits(name, form)) < BOUND


@pytest.mark.parametrize(("name", "form"), CASES)
def test_logits_are_those_of_mlx_lm(name: str, form: str) -> None:
    reason = tiny.mlx_differs(name, form)
    if reason:
        pytest.skip(f"mlx-lm: {reason}")
    folder = tiny.checkpoint(name, form)
    expected = references.mlx_logits(folder, IDS)
    assert relative_error(logits(decoder(folder), CHUNKS["whole"]), expected) < BOUND


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("way", CHUNKS)
def test_float64_on_dequantised_weights_agrees_however_the_tokens_come(name: str, way: str) -> None:
    exact = logits(decoder(tiny.checkpoint(name, "4 bits g64"), plain=True), CHUNKS[way])
    assert relative_error(exact, transformers_logits(name, "4 bits g64")) < BOUND
    found = logits(decoder(tiny.checkpoint(name, "4 bits g64")), CHUNKS[way])
    assert relative_error(found, exact) < BOUND


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "gemma4_dense"])
@pytest.mark.parametrize("form", ["plain", "4 bits g64"])
def test_a_checkpoint_in_bfloat16(name: str, form: str) -> None:
    found = logits(decoder(tiny.checkpoint(name, form, "bfloat16")), CHUNKS["prompt and single steps"])
    assert relative_error(found, transformers_logits(name, form, "bfloat16")) < BOUND


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_config_of_transformers_5_describes_the_same_decoder(name: str, tmp_path: Path) -> None:
    published = tiny.checkpoint(name, "4 bits g64")
    new = tmp_path / "new"
    shutil.copytree(published, new)
    config = json.loads((published / "config.json").read_text())
    written = json.loads(tiny.transformers_config(tiny.MODELS[name]).to_json_string())
    (new / "config.json").write_text(json.dumps({**written, "quantization": config["quantization"]}))
    assert decoder(new).architecture == decoder(published).architecture
    assert np.array_equal(logits(decoder(new), CHUNKS["whole"]), logits(decoder(published), CHUNKS["whole"]))


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4"])
def test_the_same_tokens_give_the_same_bits(name: str) -> None:
    made = decoder(tiny.checkpoint(name, "4 bits g64"))
    first = logits(made, CHUNKS["chunks and steps in turn"])
    logits(made, CHUNKS["whole"])
    assert np.array_equal(first, logits(made, CHUNKS["chunks and steps in turn"]))
