"""Rounds of interleaved bursts, and the statistics made of them.

A round runs every contestant once, with the machine's read bandwidth measured between any two: what a shared machine
does to one it does to its neighbours in time, so ratios within a round mean more than ratios of medians.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Summary:
    """A figure measured several times: its median, and the lowest and highest value."""

    median: float
    low: float
    high: float
    n: int


def summary(values: Sequence[float]) -> Summary | None:
    """The summary of some values; None where nothing was measured."""
    if not values:
        return None
    return Summary(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class Burst:
    """Several calls in a row: median seconds and bytes a second of a call, and the read bandwidth around the burst."""

    seconds: float
    byte_rate: float
    bandwidth: float
    n_calls: int


@dataclass(slots=True)
class Contest:
    """One contestant in the rounds. `run(i)` makes call number i and returns the bytes of weights that it touched."""

    label: str
    run: Callable[[int], int]
    most_rounds: int | None = None
    bursts: list[Burst] = field(default_factory=list)
    failure: str | None = None
    n_calls: int = 0

    def rounds(self) -> int:
        """Rounds taken so far."""
        return len(self.bursts)


def burst(contest: Contest, seconds: float, clock: Clock = time.perf_counter) -> tuple[float, float, int]:
    """Call until `seconds` have gone, at least once: (median seconds, median bytes a second, calls)."""
    times, rates = [], []
    begin = clock()
    while True:
        start = clock()
        touched = contest.run(contest.n_calls)
        end = clock()
        contest.n_calls += 1
        times.append(end - start)
        rates.append(touched / (end - start))
        if end - begin >= seconds:
            return statistics.median(times), statistics.median(rates), len(times)


def warm_up(contests: Sequence[Contest], calls: int = 2) -> None:
    """A few calls that are not counted; whoever fails is out, with the reason."""
    for contest in contests:
        _guarded(contest, partial(_call_all, contest, calls))
        contest.n_calls = 0 if contest.failure else calls


def run_rounds(
    contests: Sequence[Contest],
    gauge: Callable[[], float],
    n_rounds: int,
    seconds: float,
    *,
    clock: Clock = time.perf_counter,
    each_round: Callable[[int], None] = lambda _: None,
) -> None:
    """Fill the contests' bursts. `gauge` measures the read bandwidth; `each_round` is called before every round.

    Every second round runs in the opposite order, so that nobody always follows the same neighbour.
    """
    for index in range(n_rounds):
        each_round(index)
        order = [c for c in contests if not c.failure and (c.most_rounds is None or index < c.most_rounds)]
        before = gauge()
        for contest in order if index % 2 == 0 else reversed(order):
            measured = _guarded(contest, partial(burst, contest, seconds, clock))
            after = gauge()
            if measured is not None:
                median, rate, n_calls = measured
                contest.bursts.append(Burst(median, rate, (before + after) / 2, n_calls))
            before = after


def _call_all(contest: Contest, calls: int) -> None:
    for index in range(calls):
        contest.run(index)


def _guarded(contest: Contest, action: Callable[[], Any]) -> Any | None:
    """A contestant that raises is out; the others go on."""
    try:
        return action()
    except Exception as error:
        contest.failure = f"{type(error).__name__}: {error}"
        return None
