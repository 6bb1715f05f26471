"""Whole models through the public API: logits, text, streams, limits and failures."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.errors import (
    ArgumentError,
    BackendUnavailableError,
    CapacityError,
    CheckpointError,
    NumericError,
    RequestError,
    UnsupportedError,
)
from coterie.models.families import FAMILIES
from coterie.runtime import Model, load
from coterie.runtime import generation as generation_module
from coterie.runtime.memory import check_memory
from models import tiny

PROMPT = "def read_lines(path):"
HOT = 6.0
"""A temperature at which random models, whose likeliest token is far ahead, write varied text."""


@pytest.fixture(scope="module", params=["qwen3_moe", "gemma4"])
def model(request: pytest.FixtureRequest) -> Model:
    return load(tiny.checkpoint(request.param, "4 bits g64"), precision="exact")


@pytest.fixture(scope="module")
def qwen() -> Model:
    return load(str(tiny.checkpoint("qwen3_moe", "4 bits g64")), device="cpu")


def greedy(model: Model, ids: list[int], n: int) -> list[int]:
    """The likeliest continuation, from whole passes alone."""
    for _ in range(n):
        ids = [*ids, int(np.argmax(model.logits(ids)[-1]))]
        if ids[-1] in model.tokenizer.eos_ids:
            break
    return ids


def test_greedy_text_is_the_argmax_of_whole_passes(model: Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    made = model.generate(PROMPT, max_tokens=12)
    assert [*ids, *made.token_ids] == greedy(model, ids, 12)
    assert made.n_prompt_tokens == len(ids)
    assert model.generate(ids, max_tokens=12).token_ids == made.token_ids


def test_a_stream_is_the_text_in_pieces(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 30, "temperature": HOT, "seed": 5}
    stream = model.stream(PROMPT, **options)
    assert stream.generation.finish_reason is None
    pieces = list(stream)
    assert all(pieces)
    whole = model.generate(PROMPT, **options)
    assert "".join(pieces) == whole.text == stream.generation.text
    assert stream.generation.token_ids == whole.token_ids
    assert whole.finish_reason in ("stop", "length")
    assert list(stream) == []


def test_a_stream_can_be_left_and_looked_at(model: Model) -> None:
    stream = model.stream(PROMPT, max_tokens=30, temperature=HOT, seed=5)
    first = next(iter(stream))
    assert stream.generation.text == first
    assert 1 <= len(stream.generation.token_ids) < 30
    assert model.generate(PROMPT, max_tokens=3).token_ids == model.generate(PROMPT, max_tokens=3).token_ids


def test_timings_are_plausible(model: Model) -> None:
    made = model.generate(PROMPT, max_tokens=8)
    assert made.timings.keys() == {"load", "prefill", "first_token", "decode"}
    assert 0 < made.timings["prefill"] <= made.timings["first_token"]
    assert made.timings["load"] > 0
    assert made.prompt_tokens_per_second > 0
    if len(made.token_ids) > 1:
        assert made.tokens_per_second > 0
    one = model.generate(PROMPT, max_tokens=1)
    assert one.timings["decode"] == one.tokens_per_second == 0


def test_a_seed_fixes_the_text(model: Model) -> None:
    def text(seed: int) -> tuple[int, ...]:
        return model.generate(PROMPT, max_tokens=20, temperature=HOT, seed=seed).token_ids

    assert text(1) == text(1)
    assert len({text(1), text(2), text(3)}) == 3


def test_a_cold_temperature_is_greedy(model: Model) -> None:
    assert (
        model.generate(PROMPT, max_tokens=10, temperature=1e-300, seed=0).token_ids
        == model.generate(PROMPT, max_tokens=10).token_ids
    )


def test_the_text_ends_before_a_stop_string(model: Model) -> None:
    whole = model.generate(PROMPT, max_tokens=40, temperature=HOT, seed=4)
    assert len(whole.text) > 12
    for start in (0, 3, len(whole.text) - 4):
        stop = whole.text[start : start + 3]
        made = model.generate(PROMPT, max_tokens=40, temperature=HOT, seed=4, stop=stop)
        assert made.text == whole.text[: whole.text.index(stop)]
        assert made.finish_reason == "stop"
        assert made.token_ids == whole.token_ids[: len(made.token_ids)]
    unseen = model.generate(PROMPT, max_tokens=40, temperature=HOT, seed=4, stop=["\x00never\x00", whole.text + "!"])
    assert unseen.text == whole.text


def test_the_text_ends_at_an_end_token(qwen: Model) -> None:
    first = qwen.generate(PROMPT, max_tokens=6)
    ends = qwen.tokenizer.eos_ids
    try:
        qwen.tokenizer.eos_ids = frozenset({first.token_ids[3]})
        made = qwen.generate(PROMPT, max_tokens=6)
        at_once = qwen.generate([*qwen.tokenizer.encode(PROMPT), *first.token_ids[:3]], max_tokens=6)
    finally:
        qwen.tokenizer.eos_ids = ends
    n = first.token_ids.index(first.token_ids[3]) + 1
    assert made.token_ids == first.token_ids[:n]
    assert made.finish_reason == "stop"
    assert made.text == "".join(map(qwen.tokenizer.detokenizer().feed, first.token_ids[: n - 1]))
    assert (at_once.text, len(at_once.token_ids), at_once.finish_reason) == ("", 1, "stop")


def test_a_long_prompt_passes_in_chunks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tiny.token_ids(300, seed=3)
    whole = model.logits(ids)
    expected = model.generate(ids, max_tokens=8)
    for chunk in (1, 7, 64, 299):
        for module in ("coterie.runtime.generation", "coterie.runtime.model"):
            monkeypatch.setattr(f"{module}.CHUNK", chunk)
        if chunk > 1:
            error = np.linalg.norm(model.logits(ids) - whole) / np.linalg.norm(whole)
            assert error < 1e-5
        assert model.generate(ids, max_tokens=8).token_ids == expected.token_ids


def with_context(model: Model, length: int) -> Model:
    """The same model with another context length."""
    decoder = model._decoder
    shorter = object.__new__(type(decoder))
    shorter.__dict__.update(decoder.__dict__)
    shorter.architecture = dataclasses.replace(decoder.architecture, context_length=length)
    return Model(shorter, model.tokenizer, model.config, model.describe())


def test_the_end_of_the_context_ends_the_text(qwen: Model) -> None:
    ids, short = tiny.token_ids(10), with_context(qwen, 16)
    made = short.generate(ids, max_tokens=16, temperature=HOT, seed=0)
    assert len(made.token_ids) == 6
    assert made.finish_reason == "length"
    assert made.token_ids == qwen.generate(ids, max_tokens=16, temperature=HOT, seed=0).token_ids[:6]
    assert len(short.generate(tiny.token_ids(15), max_tokens=9).token_ids) == 1
    for n in (16, 17, 1000):
        with pytest.raises(RequestError) as refused:
            short.generate(tiny.token_ids(n), max_tokens=1)
        assert refused.value.code == "request_context"
    with pytest.raises(RequestError):
        short.generate(ids, max_tokens=17)
    assert short.logits(tiny.token_ids(16)).shape == (16, tiny.VOCABULARY)
    with pytest.raises(RequestError):
        short.logits(tiny.token_ids(17))


def test_prompts_that_are_none_are_refused(qwen: Model) -> None:
    prompts: list[Any] = ["", [], None, 5, b"bytes", [512], [-1], [1.5], "a\ud800"]
    for prompt in prompts:
        with pytest.raises(RequestError):
            qwen.generate(prompt, max_tokens=1)
    assert len(qwen.generate([5], max_tokens=1).token_ids) == 1


def test_a_refused_request_leaves_the_next_one_unharmed(qwen: Model) -> None:
    before = qwen.generate(PROMPT, max_tokens=8)
    with pytest.raises(RequestError):
        qwen.stream(PROMPT, top_k=10_000)
    assert qwen.generate(PROMPT, max_tokens=8).text == before.text


def test_logits_are_f32_rows(model: Model) -> None:
    found = model.logits([3, 4, 5])
    assert found.dtype == np.float32
    assert found.shape == (3, tiny.VOCABULARY)
    np.testing.assert_allclose(model.logits(np.array([3, 4]))[1], found[1], rtol=0, atol=1e-4)


def test_logits_that_are_not_finite_are_an_error_and_never_text(qwen: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = qwen._decoder.logits

    def poisoned(hidden: Any) -> np.ndarray:
        logits = honest(hidden).copy()
        logits[-1, 7] = np.nan
        return logits

    monkeypatch.setattr(qwen._decoder, "logits", poisoned)
    for options in ({}, {"temperature": HOT}):
        stream = qwen.stream(PROMPT, **options)
        with pytest.raises(NumericError):
            list(stream)
        assert stream.generation.text == ""
    with pytest.raises(NumericError):
        qwen.logits([1, 2])


def test_two_threads_may_use_one_model(qwen: Model) -> None:
    expected = {seed: qwen.generate(PROMPT, max_tokens=15, temperature=HOT, seed=seed).text for seed in range(4)}
    found: dict[int, str] = {}

    def run(seed: int) -> None:
        found[seed] = qwen.generate(PROMPT, max_tokens=15, temperature=HOT, seed=seed).text

    threads = [threading.Thread(target=run, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_a_model_inside_another(qwen: Model) -> None:
    outer = qwen.stream(PROMPT, max_tokens=10, temperature=HOT, seed=1)
    expected = qwen.generate(PROMPT, max_tokens=10, temperature=HOT, seed=1).text
    text = ""
    for piece in outer:
        text += piece
        qwen.generate("path", max_tokens=2)
    assert text == expected


def test_more_memory_than_there_is_is_refused() -> None:
    check_memory(1000)
    with pytest.raises(CapacityError) as refused:
        check_memory(2**60)
    assert refused.value.code == "cache_memory"


@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(BackendUnavailableError, match="the GPU cannot be used"):
        load(tiny.checkpoint("qwen3_moe", "4 bits g64"), device="cuda")


@pytest.mark.usefixtures("no_gpu")
def test_auto_takes_the_cpu_where_a_gpu_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for there in (False, True):
        monkeypatch.setattr("coterie.runtime.loading.has_nvidia_gpu", lambda there=there: there)
        made = load(tiny.checkpoint("qwen3_moe", "4 bits g64"))
        assert type(made._decoder.backend).__module__.startswith("coterie.backends.cpu")


def test_a_device_that_does_not_exist() -> None:
    with pytest.raises(ArgumentError):
        load(tiny.checkpoint("qwen3_moe", "4 bits g64"), device="tpu")


def test_a_source_that_was_not_converted_says_what_to_do() -> None:
    source = tiny.source("qwen3_moe")
    with pytest.raises(CheckpointError) as refused:
        load(source)
    assert refused.value.code == "missing_tensor"
    assert "coterie convert" in str(refused.value)


def test_an_unknown_family_lists_the_known_ones(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny.checkpoint("qwen3_moe", "4 bits g64"), copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "nonesuch"}))
    with pytest.raises(UnsupportedError) as refused:
        load(copy)
    assert refused.value.code == "unsupported_model_type"
    assert ", ".join(sorted(FAMILIES)) in str(refused.value)


def test_a_model_knows_what_it_is(model: Model) -> None:
    about = model.describe()
    assert about.family == model.config["model_type"]
    assert about.n_active_parameters < about.n_parameters
    assert about.family in repr(model)
    assert generation_module.CHUNK > 1
