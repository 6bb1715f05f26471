"""The figures of a row: what one entrant did with one shape, format and number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.bench.measure import Burst, Summary, summary
from coterie.bench.shapes import Shape


@dataclass(frozen=True, slots=True)
class Row:
    """`seconds`, `byte_rate` (bytes of touched experts a second) and `flop_rate` are over rounds, each round the
    median of its calls. `bandwidth_ratio` and `f32_ratio` are paired: formed within each round. `busy_ratio` is the
    time beside busy processes over the quiet time, paired as well. `error` is that of the worst checked row against
    float64, relative to the row's root mean square.
    """

    shape: str
    format: str
    tokens: int
    kernel: str
    kind: str
    layers: int
    touched_bytes: float
    flops: int
    seconds: Summary
    byte_rate: Summary
    read_bandwidth: Summary
    bandwidth_ratio: Summary
    flop_rate: Summary
    f32_ratio: Summary
    busy_seconds: Summary | None
    busy_ratio: Summary | None
    error: float | None
    note: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Who did not take part, where, and why."""

    kernel: str
    shape: str
    format: str
    reason: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What a row is about, known before anything is measured."""

    shape: Shape
    format: str
    tokens: int
    kernel: str
    kind: str
    layers: int
    touched_bytes: float
    note: str


@dataclass(frozen=True, slots=True)
class Pairs:
    """Bursts of rounds that took turns: the machine quiet, and beside busy processes."""

    quiet: Sequence[Burst] = ()
    busy: Sequence[Burst] = ()


def make_row(
    of: Identity, bursts: Sequence[Burst], f32_rates: Sequence[float], pairs: Pairs, error: float | None
) -> Row | None:
    """The row of some rounds, `f32_rates` being those of the same rounds; None where no round was completed."""
    flops = of.shape.flops(of.tokens)
    seconds = summary([burst.seconds for burst in bursts])
    if seconds is None:
        return None

    def needed(values: list[float]) -> Summary:
        found = summary(values)
        assert found is not None
        return found

    return Row(
        shape=of.shape.name,
        format=of.format,
        tokens=of.tokens,
        kernel=of.kernel,
        kind=of.kind,
        layers=of.layers,
        touched_bytes=of.touched_bytes,
        flops=flops,
        seconds=seconds,
        byte_rate=needed([burst.byte_rate for burst in bursts]),
        read_bandwidth=needed([burst.bandwidth for burst in bursts]),
        bandwidth_ratio=needed([burst.byte_rate / burst.bandwidth for burst in bursts]),
        flop_rate=needed([flops / burst.seconds for burst in bursts]),
        f32_ratio=needed([flops / b.seconds / rate for b, rate in zip(bursts, f32_rates, strict=False)]),
        busy_seconds=summary([burst.seconds for burst in pairs.busy]),
        busy_ratio=summary([b.seconds / quiet.seconds for quiet, b in zip(pairs.quiet, pairs.busy, strict=False)]),
        error=error,
        note=of.note,
    )
