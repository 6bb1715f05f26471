"""`coterie bench ops --device cuda`: whole layers, from hidden states and router logits, beside the device's limits."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch

from coterie.backends.cuda.device import within_memory
from coterie.bench.cuda import compiling, entrants, peer_module
from coterie.bench.cuda.accuracy import Errors, Reference
from coterie.bench.cuda.clock import Recording, device
from coterie.bench.cuda.device import cache_bytes, free_bytes, release
from coterie.bench.cuda.entrants import Case, Entrant
from coterie.bench.cuda.layers import Maker, plan
from coterie.bench.cuda.limits import Limits, Sizes
from coterie.bench.cuda.peers import PEERS
from coterie.bench.cuda.rows import Identity, Row, make_row
from coterie.bench.entrants import RefusedError
from coterie.bench.measure import Summary
from coterie.bench.rows import Refusal
from coterie.bench.shapes import FORMATS as PACKED
from coterie.bench.shapes import SHAPES, Shape
from coterie.formats import Format
from coterie.moe import Experts

FORMATS: Mapping[str, Format | None] = {**PACKED, "bf16": None}
TOKENS = (1, 8, 64, 512, 4096)

_SHARE = 0.5
"""Of the free memory, what weights may take: activations of peers, and graphs, need some."""

_UNRECORDED_LAYERS = 2
_UNRECORDED_ROUNDS = 3
"""Layers in a play and rounds of those who wait for the device: the host's time is theirs, and there is a lot of it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run. A round plays each entrant's layers for `seconds` at least; there are `repeats` rounds."""

    shapes: Sequence[str] = tuple(SHAPES)
    formats: Sequence[str] = tuple(FORMATS)
    tokens: Sequence[int] = TOKENS
    peers: Sequence[str] = tuple(PEERS)
    modules: Sequence[ModuleType] = ()
    repeats: int = 7
    seconds: float = 0.004
    sizes: Sizes = field(default_factory=Sizes)


@dataclass(slots=True)
class Report:
    """Everything measured, in the order of measuring."""

    rows: list[Row] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    limits: dict[str, Summary | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told what is going on, the limits, and each row as soon as it is measured."""

    progress: Callable[[str], None] = lambda _: None
    limits: Callable[[dict[str, Summary | None]], None] = lambda _: None
    row: Callable[[Row], None] = lambda _: None


def run(settings: Settings, watch: Watch, known: Mapping[str, Shape] | None = None) -> Report:
    """Measure everything on the current device; `known` replaces the shapes by name."""
    shapes = SHAPES if known is None else known
    place, report = device(), Report()
    cases = list(itertools.product([shapes[name] for name in settings.shapes], settings.formats))
    compiling.compile_ahead([(*case, FORMATS[case[1]]) for case in cases], settings.tokens, watch.progress)
    watch.progress("the limits of the device")
    limits = Limits(place, settings.sizes)
    limits.measure(settings.repeats)
    watch.limits(limits.summaries())
    bench = _Bench(settings, report, limits, watch, place)
    for shape, format_name in cases:
        bench.case(shape, format_name)
        release(place)
    limits.measure(1)
    report.limits = limits.summaries()
    return report


@dataclass(slots=True)
class _Running:
    """An entrant in the rounds of one number of tokens: `n_layers` in a play, the seconds of a layer in each round."""

    entrant: Entrant
    n_layers: int
    recording: Recording
    errors: Errors
    n_plays: int
    seconds: list[float] = field(default_factory=list)

    def take_turn(self, index: int) -> None:
        """Round number `index`."""
        if self.recording.is_graph or index < _UNRECORDED_ROUNDS:
            self.seconds.append(self.recording.seconds(self.n_plays) / self.n_layers)


@dataclass(slots=True)
class _Bench:
    settings: Settings
    report: Report
    limits: Limits
    watch: Watch
    place: torch.device

    def case(self, shape: Shape, format_name: str) -> None:
        """One shape in one format; its weights live no longer than this call."""
        settings, fmt = self.settings, FORMATS[format_name]
        self.watch.progress(f"{shape.title} {format_name}: weights")
        share = int(_SHARE * free_bytes(self.place)) // (1 + len(settings.modules))
        planned = plan(shape, fmt, share, cache_bytes(self.place))
        maker = Maker(self.place)
        layers = random_layers(maker, shape, fmt, max(map(planned.layers, settings.tokens)))
        case = Case(shape, format_name, fmt, layers, planned)
        taking_part = self._entrants(case)
        for n_tokens in settings.tokens:
            taking_part = self._length(case, taking_part, n_tokens, maker)

    def _entrants(self, case: Case) -> list[Entrant]:
        """All who can take part; the others are reported."""
        found = [entrants.own(case)]
        makers: dict[str, Callable[[], Iterable[Entrant]]] = {
            **{name: partial(PEERS[name], case) for name in self.settings.peers},
            **{module.__name__: partial(peer_module.entrants, module, case) for module in self.settings.modules},
        }
        for name, make in makers.items():
            try:
                found += make()
            except ImportError as error:
                self._refuse(name, case, f"not installed ({error})")
            except RefusedError as error:
                self._refuse(name, case, str(error))
            except Exception as error:
                self._refuse(name, case, f"{type(error).__name__}: {error}")
        return found

    def _refuse(self, name: str, case: Case, reason: str) -> None:
        refusal = Refusal(name, case.shape.name, case.format_name, reason.partition("\n")[0])
        if not any((known.kernel, known.reason) == (name, refusal.reason) for known in self.report.refusals):
            self.watch.progress(f"{name} does not take part: {refusal.reason}")
        self.report.refusals.append(refusal)

    def _length(self, case: Case, taking_part: Sequence[Entrant], n_tokens: int, maker: Maker) -> list[Entrant]:
        """The rounds of one number of tokens; the entrants that did not fail."""
        x = maker.numbers(n_tokens, case.shape.hidden, dtype=torch.bfloat16)
        logits = [maker.numbers(n_tokens, case.shape.n_experts) for _ in range(case.plan.layers(n_tokens))]
        reference = Reference(x, logits[0], case.layers[0], case.shape.top_k)
        running: list[_Running] = []
        failed: set[str] = set()

        def guarded(entrant: Entrant, action: Callable[[], None]) -> None:
            """An entrant that raises is out; the others go on."""
            try:
                action()
            except Exception as error:
                failed.add(entrant.label)
                self._refuse(entrant.label, case, f"failed at {n_tokens} tokens: {type(error).__name__}: {error}")
                release(self.place)

        for entrant in taking_part:
            if entrant.most_tokens is None or n_tokens <= entrant.most_tokens:
                guarded(entrant, lambda: running.append(self._start(entrant, x, logits, reference)))  # noqa: B023
        for index in range(self.settings.repeats):
            # Every second round in the opposite order, so that nobody always follows the same neighbour.
            for one in running if index % 2 == 0 else reversed(running):
                if one.entrant.label not in failed:
                    guarded(one.entrant, partial(one.take_turn, index))
        touched = case.plan.expert_bytes * _experts_touched(logits, case.shape.top_k)
        floor = self.limits.floor(touched, case.shape.flops(n_tokens))
        for one in running:
            if one.entrant.label not in failed:
                self._report(one, case, n_tokens, touched, floor)
        return [entrant for entrant in taking_part if entrant.label not in failed]

    def _start(
        self, entrant: Entrant, x: torch.Tensor, logits: Sequence[torch.Tensor], reference: Reference
    ) -> _Running:
        """The entrant's layers recorded, its error, and how many plays fill a round."""
        errors = reference.errors(entrant.layers[0](x, logits[0]))

        def through(n_layers: int) -> None:
            for layer, router in zip(entrant.layers[:n_layers], logits, strict=False):
                layer(x, router)

        n_layers = len(logits)
        recording = Recording(partial(through, n_layers), self.place)
        if not recording.is_graph and n_layers > _UNRECORDED_LAYERS:
            n_layers = _UNRECORDED_LAYERS
            recording = Recording(partial(through, n_layers), self.place)
        n_plays = max(1, math.ceil(self.settings.seconds / max(recording.seconds(), 1e-7)))
        return _Running(entrant, n_layers, recording, errors, n_plays)

    def _report(self, one: _Running, case: Case, n_tokens: int, touched: float, floor: float) -> None:
        of = Identity(
            case.shape, case.format_name, n_tokens, one.entrant.label, one.entrant.kind, one.n_layers, touched,
            one.recording.is_graph, one.entrant.note,
        )  # fmt: skip
        row = make_row(of, one.seconds, floor, one.errors)
        self.report.rows.append(row)
        self.watch.row(row)


@within_memory
def random_layers(maker: Maker, shape: Shape, fmt: Format | None, count: int) -> list[Experts]:
    """So many layers."""
    return [maker.experts(shape, fmt) for _ in range(count)]


def _experts_touched(logits: Sequence[torch.Tensor], top_k: int) -> float:
    """Experts that a layer reads, in the mean of the layers as they are really routed."""
    touched = [int(router.topk(top_k, -1).indices.unique().numel()) for router in logits]
    return sum(touched) / len(touched)
