"""`coterie bench model`: a whole decoder, beside the machine's read bandwidth and llama.cpp on the same weights.

A round measures, in turn: the read bandwidth, this library's prompt and steps, the bandwidth again, its prefill; then
the same of the peer. Every second round runs in the opposite order. Ratios are formed within a round.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from coterie.backends.cpu.pool import get_pool, set_num_threads
from coterie.bench.command import first_output
from coterie.bench.entrants import RefusedError
from coterie.bench.limits import Limits
from coterie.bench.measure import Summary, summary
from coterie.bench.subject import Subject
from coterie.errors import RequestError

Progress = Callable[[str], None]

_BUFFER = 512 << 20
_PASS = 64 << 20
_SETTLE = 0.02
_DISK_MARGIN = 1.2
PEERS = ("llama.cpp",)


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run: steps of one token after `prompt` tokens, a pass over `prefill` tokens, in `repeats` rounds."""

    prompt: int = 128
    steps: int = 64
    prefill: int = 512
    repeats: int = 5
    peers: Sequence[str] = PEERS
    threads: int | None = None
    buffer_bytes: int = _BUFFER


class Runner(Protocol):
    """Somebody who runs the model."""

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds of a prompt's pass with an empty cache."""
        ...

    def decode(self, prompt: Sequence[int], ids: Sequence[int]) -> tuple[float, list[float]]:
        """Seconds of a prompt's pass, and of each step after it."""
        ...

    def peak_memory(self) -> int:
        """Bytes in memory at the fullest moment of the process that runs it."""
        ...


@dataclass(slots=True)
class Entrant:
    """A runner in the rounds; each list has one figure a round: seconds, and bytes a second for `bandwidths`."""

    label: str
    kind: str
    runner: Runner
    bytes_per_token: float
    note: str = ""
    peak_memory: int = 0
    first: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    prefills: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of an entrant, over rounds. Seconds, tokens a second, bytes a second, bytes.

    first_token: from a prompt's ids to the logits that its first token is taken from. byte_rate: `bytes_per_token`
    (weights that a token reads, keys and values of the tokens before it) over the median step of a round.
    bandwidth_ratio: that over the read bandwidth around the steps. decode_ratio and prefill_ratio: this library's speed
    over this entrant's, None for itself.
    """

    kernel: str
    kind: str
    first_token: Summary
    decode_rate: Summary
    prefill_rate: Summary
    bytes_per_token: float
    byte_rate: Summary
    bandwidth_ratio: Summary
    decode_ratio: Summary | None
    prefill_ratio: Summary | None
    peak_memory: int
    note: str


@dataclass(slots=True)
class Report:
    """Everything measured. command_seconds: from a command's start to its first output, from the second run on."""

    threads: int
    title: str
    rows: list[Row] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    read_bandwidth: Summary | None = None
    command_seconds: Summary | None = None


def run(settings: Settings, make: Callable[[], Subject], progress: Progress = lambda _: None) -> Report:
    """Measure the subject that `make` makes. The number of threads is put back at the end."""
    set_num_threads(settings.threads)
    try:
        progress("weights")
        subject = make()
        _check_lengths(settings, subject)
        report = Report(get_pool().n_threads, subject.title)
        with ExitStack() as stack:
            _run(settings, subject, report, stack, progress)
        return report
    finally:
        set_num_threads(None)


def _check_lengths(settings: Settings, subject: Subject) -> None:
    longest = max(settings.prefill, settings.prompt + settings.steps)
    context = subject.decoder.architecture.context_length
    if longest > context:
        raise RequestError(
            f"{longest} tokens are wanted, and the model's context has {context}; expected fewer: --prompt and --steps "
            "together, and --prefill",
            code="request_context",
        )


def _run(settings: Settings, subject: Subject, report: Report, stack: ExitStack, progress: Progress) -> None:
    ids = _ids(settings, subject)
    progress("kernels, and a first pass")
    entrants = [_own(settings, subject, ids)]
    for name in settings.peers:
        try:
            entrants.append(_PEERS[name](settings, subject, ids, stack, progress))
        except ImportError as error:
            report.refusals[name] = f"not installed ({error})"
        except RefusedError as error:
            report.refusals[name] = str(error)
    limits = Limits(settings.buffer_bytes, min(_PASS, settings.buffer_bytes))
    limits.warm_up()
    for index in range(settings.repeats):
        progress(f"round {index + 1} of {settings.repeats}")
        _round(entrants if index % 2 == 0 else entrants[::-1], ids, limits, report)
    report.rows = [_row(entrant, entrants[0], settings) for entrant in entrants if entrant.steps]
    report.read_bandwidth = summary(limits.bandwidths)
    if subject.checkpoint is not None:
        progress("the first word of a command")
        try:
            report.command_seconds = summary(first_output(subject.checkpoint, settings.repeats))
        except RefusedError as error:
            report.refusals["command"] = str(error)


@dataclass(frozen=True, slots=True)
class _Ids:
    prompt: list[int]
    steps: list[int]
    prefill: list[int]


def _ids(settings: Settings, subject: Subject) -> _Ids:
    """Random ids, so that neighbours differ in the experts that they take."""
    rng = np.random.default_rng(0)
    size = subject.decoder.architecture.vocab_size
    lengths = (settings.prompt, settings.steps, settings.prefill)
    return _Ids(*(rng.integers(0, size, length).tolist() for length in lengths))


def _own(settings: Settings, subject: Subject, ids: _Ids) -> Entrant:
    """This library, warmed up. Its peak of memory is taken before anybody else holds some."""
    subject.decode(ids.prompt, ids.steps[:2])
    subject.prefill(ids.prefill)
    size = f"{subject.description.nbytes / 2**30:.2f} GiB of weights, f32 activations, f32 cache"
    n_bytes = subject.bytes_per_token(settings.prompt, settings.steps)
    return Entrant("coterie", "coterie", subject, n_bytes, size, subject.peak_memory())


def _llama(settings: Settings, subject: Subject, ids: _Ids, stack: ExitStack, progress: Progress) -> Entrant:
    """llama.cpp with the same weights, at its best settings. The file is gone when they are loaded."""
    from coterie.bench.peers import gguf, llama_model

    runner = stack.enter_context(llama_model.running())
    with tempfile.TemporaryDirectory(prefix="coterie-") as folder:
        free, needed = shutil.disk_usage(folder).free, subject.description.nbytes
        if free < _DISK_MARGIN * needed:
            raise RefusedError(
                f"its file needs {needed / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} are free"
            )
        progress("llama.cpp: the same weights as a GGUF file")
        path = Path(folder) / "model.gguf"
        gguf.write(path, subject.decoder.architecture, subject.decoder.weights)
        progress("llama.cpp: loading, and its best settings")
        n_context = max(settings.prefill, settings.prompt + settings.steps)
        runner.load(path, get_pool().n_threads, ids.prefill, ids.steps, n_context)
    n_bytes = gguf.bytes_per_token(subject, settings.prompt, settings.steps)
    return Entrant(runner.label, "peer", runner, n_bytes, runner.note, runner.peak_memory())


_PEERS = {"llama.cpp": _llama}


def _round(entrants: Sequence[Entrant], ids: _Ids, limits: Limits, report: Report) -> None:
    """One turn of everybody who is still there; a peer that fails is out, with the reason."""
    for entrant in entrants:
        if entrant.label in report.refusals:
            continue
        try:
            before = _gauge(limits)
            first, steps = entrant.runner.decode(ids.prompt, ids.steps)
            after = _gauge(limits)
            seconds = entrant.runner.prefill(ids.prefill)
        except RefusedError as error:
            report.refusals[entrant.label] = str(error)
            continue
        entrant.first.append(first)
        entrant.steps.append(statistics.median(steps))
        entrant.prefills.append(seconds)
        entrant.bandwidths.append((before + after) / 2)


def _gauge(limits: Limits) -> float:
    """The read bandwidth, after the threads of whoever was measured before have stopped spinning."""
    time.sleep(_SETTLE)
    return limits.read()


def _row(entrant: Entrant, own: Entrant, settings: Settings) -> Row:
    rates = [entrant.bytes_per_token / seconds for seconds in entrant.steps]
    is_peer = entrant is not own
    return Row(
        kernel=entrant.label,
        kind=entrant.kind,
        first_token=_needed(entrant.first),
        decode_rate=_needed([1 / seconds for seconds in entrant.steps]),
        prefill_rate=_needed([settings.prefill / seconds for seconds in entrant.prefills]),
        bytes_per_token=entrant.bytes_per_token,
        byte_rate=_needed(rates),
        bandwidth_ratio=_needed([rate / limit for rate, limit in zip(rates, entrant.bandwidths, strict=True)]),
        decode_ratio=_needed(_over(entrant.steps, own.steps)) if is_peer else None,
        prefill_ratio=_needed(_over(entrant.prefills, own.prefills)) if is_peer else None,
        peak_memory=entrant.peak_memory,
        note=entrant.note,
    )


def _over(seconds: Sequence[float], own: Sequence[float]) -> list[float]:
    return [theirs / ours for theirs, ours in zip(seconds, own, strict=False)]


def _needed(values: Sequence[float]) -> Summary:
    found = summary(values)
    assert found is not None
    return found
