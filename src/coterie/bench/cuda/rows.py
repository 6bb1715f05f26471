"""The figures of a row: what one entrant did with one shape, format and number of tokens on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.bench.cuda.accuracy import Errors
from coterie.bench.measure import Summary, summary
from coterie.bench.shapes import Shape


@dataclass(frozen=True, slots=True)
class Row:
    """`seconds`, `byte_rate` (bytes of touched experts a second) and `flop_rate` are of one layer, over rounds.

    floor: seconds that its bytes or operations take at the limits of the device; floor_ratio: that over the time.
    error and error_overall: the worst checked row's against float64, and that of all, None where there is no result.
    graph: False where the layers were launched one by one.
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
    flop_rate: Summary
    floor: float
    floor_ratio: Summary
    error: float
    error_overall: float
    graph: bool
    note: str


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
    graph: bool
    note: str


def make_row(of: Identity, seconds: Sequence[float], floor: float, errors: Errors) -> Row:
    """The row of the seconds of a layer, one figure a round, at least one."""
    flops = of.shape.flops(of.tokens)

    def over_rounds(amount: float) -> Summary:
        found = summary([amount / one for one in seconds])
        assert found is not None
        return found

    time = summary(seconds)
    assert time is not None
    return Row(
        shape=of.shape.name,
        format=of.format,
        tokens=of.tokens,
        kernel=of.kernel,
        kind=of.kind,
        layers=of.layers,
        touched_bytes=of.touched_bytes,
        flops=flops,
        seconds=time,
        byte_rate=over_rounds(of.touched_bytes),
        flop_rate=over_rounds(flops),
        floor=floor,
        floor_ratio=over_rounds(floor),
        error=errors.worst_row,
        error_overall=errors.overall,
        graph=of.graph,
        note=of.note,
    )
