"""A library as it is, and with our kernels in it, on one model of random packed weights: `coterie bench bridge`.

A round runs everybody's steps in turn, every second round the other way round. Decoding begins with the same tokens in
the cache for all. Ratios are formed within a round.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from coterie.backends.cpu.pool import get_pool, set_num_threads
from coterie.bench.measure import Summary, summary
from coterie.bench.real_models import RealModel
from coterie.formats import Format
from coterie.runtime.memory import memory_use

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """prompt: tokens in the cache before the first step. prefill: tokens of a prompt that is timed, once.

    steps: of ours in a round. peer_steps: of the library as it is, which may be slow by orders of magnitude.
    """

    prompt: int = 128
    prefill: int = 16
    steps: int = 32
    peer_steps: int = 3
    repeats: int = 3
    threads: int | None = None


class Way:
    """One way to run the model. nbytes: of its weights."""

    def __init__(self, label: str, ours: bool, nbytes: int) -> None:
        self.label, self.ours, self.nbytes = label, ours, nbytes

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds from a prompt's ids to its first token, with an empty cache."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int], n_steps: int) -> float:
        """Seconds a step with `ids` in the cache, which is made before."""
        raise NotImplementedError

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits f32 [V] that follow `ids`."""
        raise NotImplementedError

    def exact_logits(self, ids: Sequence[int]) -> np.ndarray:
        """The same, computed by the library itself in f32; the last thing that is asked."""
        raise NotImplementedError


class Maker(Protocol):
    """Makes the ways of a bridge."""

    def __call__(self, real: RealModel, n_layers: int, fmt: Format) -> list[Way]:
        """The library as it is first."""
        ...


@dataclass(slots=True)
class Figures:
    """Everything measured of a way: seconds of a prompt, seconds a step in each round, the error of its logits.

    grown: bytes of memory that the process took on at its first steps and kept; None where the system does not say.
    """

    way: Way
    prefill: float = 0.0
    steps: list[float] = field(default_factory=list)
    error: float = 0.0
    grown: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A way's figures. Tokens a second; faster: than the library as it is, in decoding, round by round; error: relative
    distance of the logits from those of the library in f32.
    """

    label: str
    ours: bool
    decode_rate: Summary
    faster: Summary
    prefill_rate: float
    prefill_faster: float
    error: float
    weights: int
    grown: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything measured."""

    title: str
    threads: int
    rows: list[Row]


def run(
    make: Maker, settings: Settings, real: RealModel, n_layers: int, fmt: Format, progress: Progress = lambda _: None
) -> Report:
    """Measure what `make` makes. The number of threads is put back at the end."""
    set_num_threads(settings.threads)
    try:
        progress(f"weights of {real.title}, {n_layers} of {real.n_layers} layers")
        all_figures = [Figures(way) for way in make(real, n_layers, fmt)]
        _measure(settings, all_figures, _ids(settings, real), progress)
        title = f"{real.title}, {n_layers} of {real.n_layers} layers, random weights in {fmt}"
        return Report(title, get_pool().n_threads, _rows(settings, all_figures))
    finally:
        set_num_threads(None)


def _measure(settings: Settings, everybody: list[Figures], ids: list[int], progress: Progress) -> None:
    ours = next(figures for figures in everybody if figures.way.ours)
    before = memory_use(0, ()).resident
    progress(f"{ours.way.label}: first steps")
    ours.way.decode(ids[: settings.prompt], settings.steps)
    after = memory_use(0, ()).resident
    ours.grown = None if before is None or after is None else after - before
    for figures in everybody:
        progress(f"{figures.way.label}: a prompt of {settings.prefill} tokens")
        figures.prefill = figures.way.prefill(ids[: settings.prefill])
    for index in range(settings.repeats):
        for figures in everybody if index % 2 == 0 else reversed(everybody):
            progress(f"round {index + 1} of {settings.repeats}: {figures.way.label}")
            n_steps = settings.steps if figures.way.ours else settings.peer_steps
            figures.steps.append(figures.way.decode(ids[: settings.prompt], n_steps))
    progress("logits")
    found = [figures.way.logits(ids[:2]) for figures in everybody]
    exact = everybody[0].way.exact_logits(ids[:2])
    for figures, logits in zip(everybody, found, strict=True):
        figures.error = float(np.linalg.norm(logits - exact) / np.linalg.norm(exact))


def _rows(settings: Settings, everybody: list[Figures]) -> list[Row]:
    alone = everybody[0]
    rows = []
    for figures in everybody:
        rate = summary([1 / seconds for seconds in figures.steps])
        faster = summary([theirs / seconds for theirs, seconds in zip(alone.steps, figures.steps, strict=True)])
        assert rate is not None
        assert faster is not None
        rows.append(
            Row(
                figures.way.label, figures.way.ours, rate, faster, settings.prefill / figures.prefill,
                alone.prefill / figures.prefill, figures.error, figures.way.nbytes, figures.grown,
            )
        )  # fmt: skip
    return rows


def _ids(settings: Settings, real: RealModel) -> list[int]:
    vocabulary = int(real.config.get("text_config", real.config)["vocab_size"])
    rng = np.random.default_rng(0)
    return [int(i) for i in rng.integers(0, vocabulary, max(settings.prompt, settings.prefill, 2))]
