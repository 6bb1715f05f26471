"""`coterie bench ops` and `coterie bench model` with `--device cuda`: each row is printed as soon as it is measured."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.cli.console import print_json, say, stdout, visible

if TYPE_CHECKING:
    from coterie.bench.cuda import workloads
    from coterie.bench.cuda.model import Report
    from coterie.bench.cuda.ops import Settings, Watch
    from coterie.bench.cuda.rows import Row

CHOICES = ("cpu", "cuda")


def is_cuda(device: str, *, only_cpu: dict[str, bool], only_cuda: dict[str, bool]) -> bool:
    """Whether a GPU is meant. `only_cpu` and `only_cuda`: options of one of the two, and whether they were given;
    `ArgumentError` for one that belongs to the other.
    """
    from coterie.errors import ArgumentError

    if device not in CHOICES:
        raise ArgumentError(f"--device is {device!r}, expected one of {', '.join(CHOICES)}", code="device")
    wrong = [name for name, given in (only_cpu if device == "cuda" else only_cuda).items() if given]
    if wrong:
        other = "cpu" if device == "cuda" else "cuda"
        raise ArgumentError(f"{wrong[0]} belongs to --device {other}; expected to be left out", code="bench")
    return device == "cuda"


def ops(
    chosen: dict[str, Any], tokens: str | None, modules: Sequence[Path], plot: Path | None, *, as_json: bool,
    markdown: bool,
) -> None:  # fmt: skip
    """Measure and print. Rows go to standard error where something else is the result."""
    from coterie.ops import dispatch

    dispatch.get("cuda")  # the one line that says what is missing, before anything of it is imported
    from coterie.bench.cuda import ops as measured
    from coterie.bench.cuda import report, table

    settings = _settings(chosen, tokens, modules)
    rows_are_result = not (as_json or markdown)
    found = report.record(settings, measured.run(settings, _watch(_printed if rows_are_result else _progress)))
    if plot is not None:
        from coterie.bench.plot import write

        write(found, plot)
        _progress(f"drawn: {plot}")
    if as_json:
        print_json(found)
    elif markdown:
        _printed(table.markdown(found))
    else:
        _printed("")
        for line in table.notes(found):
            _printed(line)


def _settings(chosen: dict[str, Any], tokens: str | None, modules: Sequence[Path]) -> "Settings":
    from coterie.bench.cuda.ops import FORMATS, TOKENS, Settings
    from coterie.bench.cuda.peer_module import load_peer
    from coterie.bench.cuda.peers import PEERS
    from coterie.bench.shapes import SHAPES, token_counts
    from coterie.bench.shapes import chosen as named

    return Settings(
        shapes=named(chosen["shapes"], SHAPES, "shape"),
        formats=named(chosen["formats"], FORMATS, "format"),
        tokens=TOKENS if tokens is None else token_counts(tokens),
        peers=[] if chosen["peers"] == "none" else named(chosen["peers"], PEERS, "peer"),
        modules=[load_peer(path) for path in modules],
        repeats=chosen["repeats"],
        seconds=chosen["seconds"],
    )


def _watch(show: Callable[[str], None]) -> "Watch":
    """Prints the limits, and each row, under a title where a shape or format begins."""
    from coterie.bench.cuda import report, table
    from coterie.bench.cuda.ops import Watch

    last = ""

    def limits(found: Any) -> None:
        for line in [*table.heading(report.heading(found)), "", table.columns()]:
            show(line)

    def row(found: "Row") -> None:
        nonlocal last
        figures = asdict(found)
        if table.title(figures) != last:
            last = table.title(figures)
            show(last)
        show(table.line(figures))

    return Watch(_progress, limits, row)


def model(
    source: str | None, shape: str | None, layers: int | None, format_name: str, settings: dict[str, Any], *,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure a whole model and print; `settings` are those of `workloads.Settings` that were given."""
    from coterie.ops import dispatch

    dispatch.get("cuda")
    from coterie.bench.cuda import model as measured
    from coterie.bench.cuda import model_table, random_model, report, workloads

    chosen = workloads.Settings(**settings)
    show = _progress if as_json else _printed
    watch = _model_watch(chosen, show)
    if shape is None:
        found = measured.run(chosen, lambda: random_model.from_disk(source), watch)
    else:
        found = _random_model(shape, layers, format_name, chosen, watch)
    record = report.model_record(chosen, found)
    if as_json:
        print_json(record)
        return
    for line in ["", *model_table.notes(record)]:
        _printed(line)


def _random_model(
    shape: str, layers: int | None, format_name: str, settings: "workloads.Settings", watch: Any
) -> "Report":
    """At a shape's dimensions: kernels compiled first, in processes of their own."""
    from coterie.bench.cuda import model as measured
    from coterie.bench.cuda import random_model, workloads
    from coterie.bench.cuda.clock import device
    from coterie.bench.cuda.device import free_bytes
    from coterie.bench.real_models import REAL_MODELS
    from coterie.bench.shapes import FORMATS
    from coterie.bench.subjects import layers_that_fit

    real, fmt = REAL_MODELS[shape], FORMATS[format_name]
    room = layers_that_fit(real, fmt, 1, layers, free_bytes(device()))
    workloads.rehearse(real, fmt, format_name, settings, watch.progress)
    return measured.run(settings, lambda: random_model.from_shape(real, room.n_layers, fmt, format_name), watch)


def _model_watch(settings: "workloads.Settings", show: Callable[[str], None]) -> Any:
    from coterie.bench.cuda import model_table, report
    from coterie.bench.cuda.model import Watch

    def begin(found: "Report") -> None:
        for line in [*model_table.heading(report.model_record(settings, found)), "", model_table.columns()]:
            show(line)

    return Watch(_progress, begin, lambda row: show(model_table.line(asdict(row))))


def _printed(text: str) -> None:
    """A line of figures, never folded."""
    stdout().print(visible(text, keep="\n"), soft_wrap=True)


def _progress(text: str) -> None:
    say(visible(text), style="dim")
