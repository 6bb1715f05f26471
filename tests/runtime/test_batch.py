"""Batches: every text is what its prompt gives alone, to the bit, whoever sits beside it, whenever they come and go."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from coterie.backends.cpu.decoder.row_by_row import parts_of
from coterie.backends.cpu.decoder.steps import PlayedSteps
from coterie.backends.cpu.product import DOT_TOKENS
from coterie.errors import CapacityError, RequestError
from coterie.models.decoder import Decoder, Segment
from coterie.runtime import Generation, Model, load
from coterie.runtime.cache import KeyValueCache
from coterie.runtime.generation import prefill
from models import tiny

HOT = 6.0
"""A temperature at which random models write varied text."""
LENGTHS = (1, 3, 9, 16, 17, 40, 5, 2, 30, 11)


@pytest.fixture(scope="module", params=["qwen3_moe", "gemma4"])
def model(request: pytest.FixtureRequest) -> Model:
    return load(tiny.checkpoint(request.param, "4 bits g64"))


@pytest.fixture(scope="module")
def qwen() -> Model:
    return load(tiny.checkpoint("qwen3_moe", "4 bits g64"))


def made(generation: Generation) -> tuple[Any, ...]:
    """All of a generation but its timings."""
    return generation.text, generation.token_ids, generation.finish_reason, generation.n_prompt_tokens


def prompts() -> list[list[int]]:
    return [tiny.token_ids(length, seed=index) for index, length in enumerate(LENGTHS)]


def own_options() -> list[dict[str, Any]]:
    """Texts of many lengths: drawn and greedy, long and short."""
    return [{"seed": i, "max_tokens": 2 + 7 * i % 23, "temperature": HOT * (i % 3 > 0)} for i in range(len(LENGTHS))]


@pytest.mark.parametrize("size", [1, 3, 4, 5, 10])
def test_each_text_is_what_its_prompt_gives_alone(model: Model, size: int) -> None:
    alone = [model.generate(ids, **options) for ids, options in zip(prompts(), own_options(), strict=True)]
    batch = model.generate_batch(prompts(), each=own_options(), max_batch_size=size)  # type: ignore[arg-type]
    assert list(map(made, batch)) == list(map(made, alone))
    assert len({len(generation.token_ids) for generation in alone}) > 4


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_bundled_model_writes_in_a_batch_what_it_writes_alone(temperature: float) -> None:
    bundled = load()
    texts = [
        "def read_lines(path):",
        "import",
        "class Stack:\n    def push(self, item):",
        "\n",
        "def mean(values):",
        "#",
    ]
    common: dict[str, Any] = {"max_tokens": 40, "temperature": temperature, "seed": 3, "stop": "\n\n"}
    batch = bundled.generate_batch(texts, max_batch_size=5, **common)
    assert list(map(made, batch)) == [made(bundled.generate(text, **common)) for text in texts]


def step_logits(decoder: Decoder, texts: list[list[int]], forced: list[int]) -> np.ndarray:
    """Logits [steps, B, V] of decoding the same forced tokens in all texts, one pass a step."""
    caches = [KeyValueCache(decoder.architecture, chunk=len(ids), limit=len(ids) + len(forced)) for ids in texts]
    for ids, cache in zip(texts, caches, strict=True):
        prefill(decoder, ids, cache)
    steps = decoder.row_by_row()
    passes = ([Segment([token_id], cache) for cache in caches] for token_id in forced)
    return np.stack([steps.logits(steps.hidden_of(segments)) for segments in passes])


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "4 bits g64") for name in tiny.MODELS]
    + [(name, form) for name in ("qwen3_moe", "gemma4") for form in ("8 bits g64", "mxfp4", "plain")],
)
def test_logits_of_a_batch_are_those_of_each_alone_bit_for_bit(name: str, form: str) -> None:
    decoder, forced = load(tiny.checkpoint(name, form))._decoder, tiny.token_ids(6, seed=9)
    together = step_logits(decoder, prompts(), forced)
    for index, ids in enumerate(prompts()):
        cache = KeyValueCache(decoder.architecture, chunk=len(ids), limit=len(ids) + len(forced))
        prefill(decoder, ids, cache)
        alone = np.concatenate([decoder.logits(decoder.hidden([token_id], cache)) for token_id in forced])
        assert np.array_equal(together[:, index], alone)


def test_an_expert_that_every_row_chose_takes_no_more_rows_at_a_time_than_one_row_allows() -> None:
    ids = np.zeros((3 * DOT_TOKENS - 1, 2), np.uint32)
    ids[:, 1] = 1 + np.arange(len(ids)) % 3
    parts = parts_of(ids, 4, DOT_TOKENS)
    assert sorted(itertools.chain(*parts)) == list(range(len(ids)))
    assert [len(part) for part in parts] == [DOT_TOKENS, DOT_TOKENS, DOT_TOKENS - 1]


def test_no_more_texts_are_under_way_than_there_are_seats(qwen: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    honest = PlayedSteps.logits

    def counted(self: PlayedSteps, ids: Sequence[int]) -> Any:
        sizes.append(len(ids))
        return honest(self, ids)

    monkeypatch.setattr(PlayedSteps, "logits", counted)
    qwen.generate_batch(prompts(), each=own_options(), max_batch_size=4)  # type: ignore[arg-type]
    assert max(sizes) == 4
    n_alone = sum(options["max_tokens"] - 1 for options in own_options())
    assert len(sizes) < n_alone / 2


def test_pieces_of_all_texts_come_as_they_are_made(model: Model) -> None:
    stream = model.stream_batch(prompts(), max_tokens=12, temperature=HOT, seed=1, max_batch_size=4)
    assert all(generation.finish_reason is None for generation in stream.generations)
    texts, ends, order = [""] * len(LENGTHS), {}, []
    for piece in stream:
        assert piece.text or piece.finish_reason
        assert piece.index not in ends
        texts[piece.index] += piece.text
        order.append(piece.index)
        if piece.finish_reason:
            ends[piece.index] = piece.finish_reason
    assert texts == [generation.text for generation in stream.generations]
    assert ends == {i: generation.finish_reason for i, generation in enumerate(stream.generations)}
    assert order != sorted(order)
    assert list(stream) == []


def test_a_batch_can_be_left(qwen: Model) -> None:
    stream = qwen.stream_batch(prompts(), max_tokens=20, temperature=HOT, seed=1)
    first = next(iter(stream))
    assert stream.generations[first.index].text == first.text


def test_texts_stop_by_themselves(qwen: Model) -> None:
    ids = tiny.token_ids(8)
    whole = qwen.generate(ids, max_tokens=20, temperature=HOT, seed=2)
    stop = whole.text[5:8]
    each: Any = [{"stop": stop}, {}, {"stop": stop, "seed": 3}]
    batch = qwen.generate_batch([ids] * 3, each=each, max_tokens=20, temperature=HOT, seed=2)
    assert batch[0].text == whole.text[: whole.text.index(stop)]
    assert batch[1].text == whole.text
    assert made(batch[2]) == made(qwen.generate(ids, max_tokens=20, temperature=HOT, seed=3, stop=stop))


def test_timings_count_from_the_request(qwen: Model) -> None:
    batch = qwen.generate_batch(prompts(), max_tokens=5, max_batch_size=2)
    first = [generation.timings["first_token"] for generation in batch]
    assert first == sorted(first)
    assert all(0 < generation.timings["prefill"] <= at for generation, at in zip(batch, first, strict=True))


def test_no_prompts_are_no_work(qwen: Model) -> None:
    assert qwen.generate_batch([]) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ({"prompts": "text"}, "request_prompts", "list"),
        ({"prompts": iter([])}, "request_prompts", "list"),
        ({"prompts": [[1], []]}, "request_empty", "prompt 1"),
        ({"prompts": [[1], [10**6]]}, "request_prompt", "prompt 1"),
        ({"prompts": ["a", None]}, "request_prompt", "prompt 1"),
        ({"prompts": ["a"], "top_p": 2.0}, "request_top_p", "prompt 0"),
        ({"prompts": ["a"], "nonesuch": 2}, "request_unknown", "nonesuch"),
        ({"prompts": ["a", "b"], "each": [{}]}, "request_each", "2"),
        ({"prompts": ["a", "b"], "each": [{}, {"seed": -1}]}, "request_seed", "prompt 1"),
        ({"prompts": ["a"], "each": [None]}, "request_each", "mapping"),
        ({"prompts": ["a"], "max_batch_size": 0}, "request_max_batch_size", "1"),
        ({"prompts": ["a"], "max_batch_size": 2.5}, "request_max_batch_size", "integer"),
        ({"prompts": ["a"], "max_batch_size": True}, "request_max_batch_size", "integer"),
    ],
)
def test_batches_that_are_none_are_refused(qwen: Model, arguments: dict[str, Any], code: str, says: str) -> None:
    with pytest.raises(RequestError) as refused:
        qwen.generate_batch(**arguments)
    assert refused.value.code == code
    assert says in str(refused.value)


def test_caches_of_all_seats_must_fit(qwen: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    one = KeyValueCache.nbytes_for(qwen._decoder.architecture, chunk=1, limit=100)
    monkeypatch.setattr("coterie.runtime.memory.physical_memory", lambda: 2.5 * one)
    ids = tiny.token_ids(90)
    assert len(qwen.generate_batch([ids] * 5, max_tokens=11, max_batch_size=2)) == 5
    with pytest.raises(CapacityError):
        qwen.stream_batch([ids] * 5, max_tokens=11, max_batch_size=3)
