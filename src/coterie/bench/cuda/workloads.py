"""What is done with a decoder on the device: steps behind a cache of random keys and values, and passes of prompts.

Steps are those of generated texts: recorded as a CUDA graph, tokens drawn on the device, the host one step behind.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from coterie.bench.cuda import compiling
from coterie.bench.cuda.limits import Sizes
from coterie.bench.cuda.random_model import DeviceSubject, from_shape
from coterie.bench.real_models import RealModel
from coterie.errors import NumericError, RequestError
from coterie.formats import Format
from coterie.models.steps import Draw
from coterie.runtime.cache import CHUNK, KeyValueCache
from coterie.runtime.generation import prefill

WARM = 4
"""Steps before the first that is timed: one that compiles, one that is recorded, and two that play it."""

_WARM_PASSES = 2
"""Passes before the first that is timed: one that finds out in which orders activations are wanted, and one that is the
first to make them so.
"""

_REHEARSAL_BYTES = 8 << 30
"""What one period of layers, the head, and the caches of a batch take."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run, in `repeats` rounds: `steps` steps behind `prompt` tokens, of each of `batches` texts side by side,
    and the pass of a prompt of `prefill` tokens.
    """

    prompt: int = 2048
    steps: int = 64
    prefill: int = 4096
    batches: Sequence[int] = (1, 32)
    repeats: int = 3
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def positions(self) -> int:
        """Tokens of a text when its last step is over; the host is one behind."""
        return self.prompt + WARM + self.steps * self.repeats + 1


@dataclass(frozen=True, slots=True)
class Work:
    """One line of the report: steps of `batch` texts, or for a batch of None the pass of a prompt.

    alone: each text has the bits that it has alone, as in `generate_batch`; otherwise rows are multiplied together.
    """

    batch: int | None
    alone: bool = False

    @property
    def title(self) -> str:
        """Its name in the report."""
        if self.batch is None:
            return "prompt"
        if self.batch == 1:
            return "1 text"
        return f"{self.batch} texts, {'bit for bit' if self.alone else 'rows together'}"


def works(settings: Settings) -> list[Work]:
    """The lines of a report."""
    steps = [Work(batch, alone) for batch in settings.batches for alone in ([False] if batch == 1 else [False, True])]
    return [*steps, Work(None)]


def check_lengths(settings: Settings, subject: DeviceSubject) -> None:
    """`RequestError` for more tokens than the model's context holds."""
    longest, context = max(settings.positions, settings.prefill), subject.decoder.architecture.context_length
    if longest > context:
        raise RequestError(
            f"{longest} tokens are wanted, and the model's context has {context}; expected fewer: --prompt and "
            "--repeats times --steps together, and --prefill",
            code="request_context",
        )


def seconds_of(subject: DeviceSubject, work: Work, settings: Settings) -> list[float]:
    """Seconds of a step, or of the pass, in each round."""
    rng = np.random.default_rng(0)
    return _passes(subject, settings, rng) if work.batch is None else _steps(subject, work, settings, rng)


def _passes(subject: DeviceSubject, settings: Settings, rng: np.random.Generator) -> list[float]:
    found = []
    for _ in range(settings.repeats + _WARM_PASSES):
        ids = rng.integers(0, subject.decoder.architecture.vocab_size, settings.prefill).tolist()
        cache = _cache(subject, settings.prefill, settings.prefill)
        start = time.perf_counter()
        logits = prefill(subject.decoder, ids, cache)
        found.append(time.perf_counter() - start)
        _check_finite(bool(np.isfinite(logits).all()))
    return found[_WARM_PASSES:]


def _steps(subject: DeviceSubject, work: Work, settings: Settings, rng: np.random.Generator) -> list[float]:
    assert work.batch is not None
    decoder = subject.decoder.row_by_row() if work.alone else subject.decoder
    caches = [_filled(subject, settings) for _ in range(work.batch)]
    # Drawn at temperature 1, so that texts differ, and with them the experts that they take.
    draws = [Draw(1.0, 0, 1.0, 0.0, rng.random(settings.positions)) for _ in caches]
    ids = rng.integers(0, subject.decoder.architecture.vocab_size, work.batch).tolist()
    steps = decoder.steps(caches)
    try:
        tokens = steps.tokens(ids, draws)
        assert tokens is not None
        _take(tokens, WARM)
        return [_take(tokens, settings.steps) for _ in range(settings.repeats)]
    finally:
        steps.close()


def _take(tokens: Iterator[list[int]], n_steps: int) -> float:
    """Seconds of a step, in the mean of so many in a row."""
    start = time.perf_counter()
    lowest = [min(next(tokens)) for _ in range(n_steps)]
    seconds = time.perf_counter() - start
    _check_finite(min(lowest) >= 0)
    return seconds / n_steps


def _check_finite(finite: bool) -> None:
    if not finite:
        raise NumericError("logits are NaN or infinite; expected finite ones, nothing that was timed means anything")


def _cache(subject: DeviceSubject, n_prompt: int, limit: int) -> KeyValueCache:
    chunk = subject.decoder.store_traits.chunk or CHUNK
    return KeyValueCache(subject.decoder.architecture, chunk=min(chunk, n_prompt), limit=limit)


def _filled(subject: DeviceSubject, settings: Settings) -> KeyValueCache:
    """A cache of random keys and values, as if a prompt had been read."""
    cache, backend = _cache(subject, settings.prompt, settings.positions), _back_end(subject)
    cache.reserve(settings.prompt, backend.pass_rows.make_store)
    cache.length = settings.prompt
    for layer in cache.layers:
        for store in layer.stores:
            store.normal_()
    return cache


def _back_end(subject: DeviceSubject) -> Any:
    return subject.decoder.backend


def rehearse(model: RealModel, fmt: Format, format_name: str, settings: Settings, progress: compiling.Progress) -> None:
    """Compile the kernels of every line, in processes of their own."""
    calls = [partial(rehearse_one, model, fmt, format_name, settings, work) for work in works(settings)]
    compiling.rehearse(calls, _REHEARSAL_BYTES, progress)


def rehearse_one(model: RealModel, fmt: Format, format_name: str, settings: Settings, work: Work) -> None:
    """A line on as few layers as have every kind of them, as short as can be."""
    subject = from_shape(model, model.period, fmt, format_name)
    seconds_of(subject, work, replace(settings, steps=1, repeats=1))
