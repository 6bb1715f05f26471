"""The arithmetic of rounds and rows, with a clock that stands still unless it is told to move."""

import numpy as np
import pytest

from coterie.bench.measure import Burst, Contest, burst, run_rounds, summary, warm_up
from coterie.bench.rows import Identity, Pairs, make_row
from coterie.bench.shapes import FORMATS, SHAPES, Shape, chosen, token_counts
from coterie.errors import ArgumentError

TINY = Shape("tiny", "Tiny", 128, 64, 8, 2, "silu")


class FakeClock:
    """Time that passes only where a call says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def caller(self, seconds: list[float], touched: int = 100):
        """Calls that take these times, one after the other, again and again."""

        def run(index: int) -> int:
            self.now += seconds[index % len(seconds)]
            return touched

        return run


def test_a_summary_is_median_and_range() -> None:
    found = summary([3.0, 1.0, 2.0, 10.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.n) == (2.5, 1.0, 10.0, 4)
    assert summary([]) is None


def test_a_burst_runs_until_its_time_is_up_and_takes_medians() -> None:
    clock = FakeClock()
    contest = Contest("a", clock.caller([1.0, 2.0, 4.0]))
    assert burst(contest, 6.5, clock) == (2.0, 50.0, 3)
    # The next burst goes on with the next call, and a burst has one call at least.
    assert burst(contest, 0.0, clock) == (1.0, 100.0, 1)


def test_rounds_pair_each_burst_with_the_bandwidth_on_both_sides() -> None:
    clock, gauges = FakeClock(), iter([10.0, 20.0, 40.0, 100.0, 200.0, 400.0])
    first, second = Contest("a", clock.caller([1.0])), Contest("b", clock.caller([2.0]))
    run_rounds([first, second], lambda: next(gauges), 2, 0.0, clock=clock)
    assert [b.bandwidth for b in first.bursts] == [15.0, 300.0]
    # The second round runs in the opposite order.
    assert [b.bandwidth for b in second.bursts] == [30.0, 150.0]


def test_a_contestant_that_fails_is_out_and_the_others_go_on() -> None:
    clock = FakeClock()

    def fail(index: int) -> int:
        if index == 3:
            raise RuntimeError("no more")
        clock.now += 1
        return 1

    bad, good, few = Contest("bad", fail), Contest("good", clock.caller([1.0])), Contest("few", clock.caller([1.0]), 2)
    warm_up([bad, good, few])
    run_rounds([bad, good, few], lambda: 1.0, 4, 0.0, clock=clock)
    assert bad.failure == "RuntimeError: no more"
    assert (len(bad.bursts), len(good.bursts), len(few.bursts)) == (1, 4, 2)


def test_a_row_has_paired_ratios_not_ratios_of_medians() -> None:
    flops = TINY.flops(1)
    assert flops == 2 * 3 * 2 * 128 * 64
    bursts = [Burst(1.0, 10.0, 10.0, 1), Burst(2.0, 5.0, 20.0, 1), Burst(4.0, 20.0, 25.0, 1)]
    pairs = Pairs([Burst(1.0, 1, 1, 1), Burst(2.0, 1, 1, 1)], [Burst(3.0, 1, 1, 1), Burst(4.0, 1, 1, 1)])
    of = Identity(TINY, "4bit", 1, "x", "peer", 1, 5.0, "")
    row = make_row(of, bursts, [flops, flops, flops], pairs, 1e-6)
    assert row is not None
    assert (row.bandwidth_ratio.low, row.bandwidth_ratio.median, row.bandwidth_ratio.high) == (0.25, 0.8, 1.0)
    assert (row.seconds.median, row.byte_rate.median) == (2.0, 10.0)
    assert row.flop_rate.median == flops / 2
    assert (row.f32_ratio.low, row.f32_ratio.median, row.f32_ratio.high) == (0.25, 0.5, 1.0)
    assert row.busy_ratio is not None
    assert row.busy_ratio.median == 2.5
    assert make_row(of, [], [], Pairs(), None) is None


def test_names_and_counts_are_checked() -> None:
    assert chosen("all", SHAPES, "shape") == list(SHAPES)
    assert chosen("qwen3, gemma4,qwen3", SHAPES, "shape") == ["qwen3", "gemma4"]
    assert token_counts("1, 64") == [1, 64]
    for text in ("", "gemma5", "all,qwen3"):
        with pytest.raises(ArgumentError, match="expected all, or some of 4bit, 8bit, mxfp4"):
            chosen(text, FORMATS, "format")
    for text in ("", "0", "1,-2", "x", "99999999"):
        with pytest.raises(ArgumentError, match="expected numbers"):
            token_counts(text)


def test_flops_agree_with_the_matrices() -> None:
    matrices = [np.zeros((64, 128)), np.zeros((64, 128)), np.zeros((128, 64))]
    assert TINY.flops(5) == 5 * TINY.top_k * sum(2 * matrix.size for matrix in matrices)
