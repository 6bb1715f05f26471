"""`coterie bench model --device cuda`: a whole decoder beside the limits of the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from coterie.bench.cuda.clock import device
from coterie.bench.cuda.device import release
from coterie.bench.cuda.limits import Limits
from coterie.bench.cuda.random_model import DeviceSubject
from coterie.bench.cuda.workloads import WARM, Settings, Work, check_lengths, seconds_of, works
from coterie.bench.measure import Summary, summary
from coterie.bench.subject import cache_bytes
from coterie.models.description import Description
from coterie.runtime.memory import peak_memory


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of a line. `seconds` of a step, or of the prompt's pass; `rate`: tokens a second, of all texts.

    limit: "read" or "bf16", whichever the work is held against. n_bytes: what a step reads, experts as a uniform router
    would touch them, keys and values included; limit_ratio: that over the time and the read bandwidth. For the pass it
    is its operations (two for each active weight of the layers and each token) over the time and the bf16 rate.
    """

    work: str
    tokens: int
    context: int
    seconds: Summary
    rate: Summary
    n_bytes: float | None
    limit: str
    limit_ratio: Summary
    peak_memory: int


@dataclass(slots=True)
class Report:
    """Everything measured. weight_bytes: of the whole model; token_bytes: of the weights that one token reads."""

    title: str
    weight_bytes: int = 0
    token_bytes: int = 0
    rows: list[Row] = field(default_factory=list)
    limits: dict[str, Summary | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told what is going on, and each row as soon as it is measured."""

    progress: Callable[[str], None] = lambda _: None
    begin: Callable[[Report], None] = lambda _: None
    row: Callable[[Row], None] = lambda _: None


def run(settings: Settings, make: Callable[[], DeviceSubject], watch: Watch) -> Report:
    """Measure the subject that `make` makes."""
    place = device()
    limits = Limits(place, settings.sizes)
    limits.measure(settings.repeats)
    watch.progress("weights")
    subject = make()
    check_lengths(settings, subject)
    description = subject.description
    report = Report(subject.title, description.nbytes, description.nbytes_per_token, limits=limits.summaries())
    watch.begin(report)
    for work in works(settings):
        watch.progress(work.title)
        release(place)
        if place.type == "cuda":
            torch.cuda.reset_peak_memory_stats(place)
        seconds = seconds_of(subject, work, settings)
        row = _row(subject, work, settings, seconds, limits)
        report.rows.append(row)
        watch.row(row)
    return report


def _row(subject: DeviceSubject, work: Work, settings: Settings, seconds: Sequence[float], limits: Limits) -> Row:
    read, rate = (limits.values[name] for name in ("read_bandwidth", "bf16_rate"))
    place = device()
    peak = int(torch.cuda.max_memory_allocated(place)) if place.type == "cuda" else peak_memory()
    context = settings.prompt + WARM + settings.steps * settings.repeats // 2
    if work.batch is None:
        tokens, context, n_bytes = settings.prefill, settings.prefill, None
        floor = pass_operations(subject.description, tokens) / float(np.median(rate))
    else:
        tokens = work.batch
        itemsize = subject.decoder.store_traits.itemsize
        cached = tokens * cache_bytes(subject.decoder.architecture, context, itemsize)
        n_bytes = step_bytes(subject.description, tokens) + cached
        floor = n_bytes / float(np.median(read))
    return Row(
        work=work.title,
        tokens=tokens,
        context=context,
        seconds=_needed(seconds),
        rate=_needed([tokens / one for one in seconds]),
        n_bytes=n_bytes,
        limit="bf16" if work.batch is None else "read",
        limit_ratio=_needed([floor / one for one in seconds]),
        peak_memory=peak,
    )


def step_bytes(description: Description, batch: int) -> float:
    """Bytes of the weights that a step of so many tokens touches, where each takes its share of a weight by chance."""
    return sum(
        weight.nbytes * (1 - (1 - weight.nbytes_per_token / weight.nbytes) ** batch) for weight in description.weights
    )


def pass_operations(description: Description, n_tokens: int) -> int:
    """Multiplications and additions with the weights of the layers; attention and the head are left out."""
    active = sum(weight.n_active_parameters for weight in description.weights if weight.layer is not None)
    return 2 * active * n_tokens


def _needed(values: Sequence[float]) -> Summary:
    found = summary(values)
    assert found is not None
    return found
