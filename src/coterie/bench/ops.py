"""`coterie bench ops`: every entrant on every shape, format and number of tokens, interleaved with the limits."""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from coterie.backends.cpu.pool import get_pool, set_num_threads
from coterie.bench import accuracy
from coterie.bench.busy import Busy, busy_processes
from coterie.bench.entrants import MODES, Case, Entrant, Own, RefusedError
from coterie.bench.limits import Limits
from coterie.bench.machine import last_level_cache
from coterie.bench.measure import Contest, Summary, run_rounds, warm_up
from coterie.bench.peers import PEERS
from coterie.bench.rows import Identity, Pairs, Refusal, Row, make_row
from coterie.bench.shapes import FORMATS, SHAPES, TOKENS, Shape
from coterie.bench.weights import Call, calls
from coterie.errors import UnsupportedError

Progress = Callable[[str], None]

_BUFFER = 512 << 20
_PASS = 64 << 20
_WEIGHTS = 5 << 30
"""Bytes of weights in memory at a time, all entrants together; one layer each is always allowed."""
_CALLS = {1: 60, 64: 8}
"""Different calls, by the largest number of tokens that they go up to; others have four."""
_SETTLE = 0.005
_BUSY_TOKENS = 1
_BUSY_SECONDS = 0.3
"""A burst beside busy processes spans many turns of the system's scheduler."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run. `repeats` rounds of at least `seconds` of calls for each row; `threads` of None is one a core.

    `busy`: decoding is measured beside so many busy processes, too. `slow` lets very slow peers take everything.
    """

    shapes: Sequence[str] = tuple(SHAPES)
    formats: Sequence[str] = tuple(FORMATS)
    tokens: Sequence[int] = TOKENS
    peers: Sequence[str] = tuple(PEERS)
    modes: Sequence[str] = tuple(MODES)
    repeats: int = 7
    seconds: float = 0.1
    threads: int | None = None
    busy: int = 0
    slow: bool = False
    buffer_bytes: int = _BUFFER
    weight_bytes: int = _WEIGHTS


@dataclass(slots=True)
class Report:
    """Everything measured, in the order of measuring."""

    threads: int
    rows: list[Row] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    limits: dict[str, Summary | None] = field(default_factory=dict)


def run(settings: Settings, progress: Progress = lambda _: None, known: dict[str, Shape] | None = None) -> Report:
    """Measure everything; `known` replaces the shapes by name. The number of threads is put back at the end."""
    shapes = SHAPES if known is None else known
    set_num_threads(settings.threads)
    try:
        report = Report(get_pool().n_threads)
        progress("the limits of the machine")
        limits = Limits(settings.buffer_bytes, min(_PASS, settings.buffer_bytes))
        limits.warm_up()
        limits.arithmetic()
        limits.read()
        with busy_processes(settings.busy) as busy:
            for shape, name in itertools.product(settings.shapes, settings.formats):
                _Bench(settings, report, limits, busy, progress).case(shapes[shape], name)
        report.limits = limits.summaries()
        return report
    finally:
        set_num_threads(None)


@dataclass(slots=True)
class _Bench:
    settings: Settings
    report: Report
    limits: Limits
    busy: Busy | None
    progress: Progress

    def case(self, shape: Shape, format_name: str) -> None:
        """One shape in one format; its weights live no longer than this call."""
        self.progress(f"{shape.title} {format_name}: weights")
        share = self.settings.weight_bytes // (1 + len(self.settings.peers))
        case = Case(shape, format_name, FORMATS[format_name], self.report.threads, share, last_level_cache())
        entrants = self._entrants(case)
        for n_tokens in self.settings.tokens:
            entrants = self._length(case, entrants, n_tokens)

    def _entrants(self, case: Case) -> list[Entrant]:
        """All who can take part; the others are reported. Their weights are made, and so touched, here."""
        entrants: list[Entrant] = []
        for mode in self.settings.modes:
            try:
                entrants.append(Own(case, mode))
            except UnsupportedError as error:
                self._refuse(f"coterie {mode}", case, str(error))
        for name in self.settings.peers:
            try:
                entrants += PEERS[name](case)
            except ImportError as error:
                self._refuse(name, case, f"not installed ({error})")
            except RefusedError as error:
                self._refuse(name, case, str(error))
            except Exception as error:
                self._refuse(name, case, f"{type(error).__name__}: {error}")
        return entrants

    def _refuse(self, name: str, case: Case, reason: str) -> None:
        refusal = Refusal(name, case.shape.name, case.format_name, reason.partition("\n")[0])
        if refusal not in self.report.refusals:
            self.report.refusals.append(refusal)
            self.progress(f"{name} does not take part: {refusal.reason}")

    def _length(self, case: Case, entrants: Sequence[Entrant], n_tokens: int) -> list[Entrant]:
        """The rounds of one number of tokens; the entrants that did not fail."""
        n_calls = next((count for most, count in sorted(_CALLS.items()) if n_tokens <= most), 4)
        made = list(itertools.islice(calls(case.shape, n_tokens, 1, case.checked), n_calls))
        fields = [entrant for entrant in entrants if self._takes_part(entrant, n_tokens)]
        contests = [self._contest(entrant, made) for entrant in fields]
        self.progress(f"{case.shape.title} {case.format_name}, {n_tokens} tokens: {', '.join(e.label for e in fields)}")
        errors = [self._error(entrant, contest, made[0]) for entrant, contest in zip(fields, contests, strict=True)]
        warm_up([contest for contest in contests if not contest.failure])
        f32_rates: list[float] = []
        settings = self.settings
        run_rounds(
            contests,
            self._gauge,
            settings.repeats,
            settings.seconds,
            each_round=lambda _: f32_rates.append(self.limits.arithmetic()[0]),
        )
        busy = self._beside_others(contests) if n_tokens <= _BUSY_TOKENS else [Pairs() for _ in contests]
        touched = sum(call.n_touched for call in made) / len(made)
        for entrant, contest, error, pairs in zip(fields, contests, errors, busy, strict=True):
            of = Identity(
                case.shape, case.format_name, n_tokens, entrant.label, entrant.kind, entrant.n_layers,
                touched * entrant.expert_bytes, entrant.note,
            )  # fmt: skip
            row = make_row(of, contest.bursts, f32_rates, pairs, error)
            if row is not None:
                self.report.rows.append(row)
            if contest.failure:
                self._refuse(entrant.label, case, f"failed at {n_tokens} tokens: {contest.failure}")
        failed = {contest.label for contest in contests if contest.failure}
        return [entrant for entrant in entrants if entrant.label not in failed]

    def _gauge(self) -> float:
        """The read bandwidth, after the threads of whoever was measured before have stopped spinning."""
        time.sleep(_SETTLE)
        return self.limits.read()

    def _takes_part(self, entrant: Entrant, n_tokens: int) -> bool:
        return self.settings.slow or entrant.most_tokens is None or n_tokens <= entrant.most_tokens

    def _contest(self, entrant: Entrant, made: list[Call]) -> Contest:
        prepared: dict[int, object] = {}

        def run(index: int) -> int:
            place = index % len(made)
            entrant.run(index % entrant.n_layers, prepared[place])
            return made[place].n_touched * entrant.expert_bytes

        contest = Contest(entrant.label, run, entrant.most_rounds)
        try:
            prepared.update((place, entrant.prepare(call)) for place, call in enumerate(made))
        except Exception as error:
            contest.failure = f"{type(error).__name__}: {error}"
        return contest

    def _error(self, entrant: Entrant, contest: Contest, first: Call) -> float | None:
        """The error of the first call, on the first layer."""
        if contest.failure:
            return None
        try:
            wanted = entrant.wanted()
            output = entrant.output(entrant.run(0, entrant.prepare(first)))
            return None if wanted is None else accuracy.worst_row(output, wanted)
        except Exception as error:
            contest.failure = f"{type(error).__name__}: {error}"
            return None

    def _beside_others(self, contests: Sequence[Contest]) -> list[Pairs]:
        """Rounds in turn without and with the busy processes; no bandwidth is measured in them."""
        busy = self.busy
        if busy is None:
            return [Pairs() for _ in contests]
        doubled = [
            Contest(c.label, c.run, c.most_rounds and 2 * c.most_rounds, failure=c.failure, n_calls=c.n_calls)
            for c in contests
        ]
        seconds = max(_BUSY_SECONDS, self.settings.seconds)
        try:
            run_rounds(
                doubled,
                lambda: 1.0,
                2 * self.settings.repeats,
                seconds,
                each_round=lambda index: busy.on() if index % 2 else busy.off(),
            )
        finally:
            busy.off()
        for contest, other in zip(contests, doubled, strict=True):
            contest.failure = other.failure
        return [Pairs(contest.bursts[0::2], contest.bursts[1::2]) for contest in doubled]
