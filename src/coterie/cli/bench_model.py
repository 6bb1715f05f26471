"""`coterie bench model`: a whole model measured beside the limit of the machine and llama.cpp."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli import bench_cuda
from coterie.cli.console import print_json, say, stdout, visible
from coterie.cli.failures import guarded
from coterie.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from coterie.bench.subject import Subject


def model(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A folder or a hub id; the bundled model if not given."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shape: Annotated[
        str | None,
        typer.Option(
            help="Random weights at the dimensions of qwen3-30b-a3b, qwen3-235b-a22b, gemma-4-26b-a4b, mixtral-8x7b, "
            "olmoe-1b-7b or gpt-oss-20b.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Layers of the shape.", show_default="as many as fit")
    ] = None,
    format_name: Annotated[str, typer.Option("--format", help="Of the shape: 4bit, 8bit or mxfp4.")] = "4bit",
    prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in the cache before the first step.", show_default="128; 2048 on cuda"),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, in each round.", show_default="64")] = None,
    prefill: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the prompt whose pass is timed.", show_default="512; 4096 on cuda"),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="Texts side by side, on cuda: numbers with commas between.", show_default="1,32"),
    ] = None,
    peers: Annotated[str | None, typer.Option(help="llama.cpp, all, or none.", show_default="all")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds.", show_default="5; 3 on cuda")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads; one for each core if not given.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a model: first token, decode, prefill and peak memory, beside the read bandwidth and llama.cpp."""
    with guarded(as_json=as_json, debug=debug):
        given = {"prompt": prompt, "steps": steps, "prefill": prefill, "repeats": repeats}
        settings = {name: value for name, value in given.items() if value is not None}
        only_cpu = {"--peers": peers not in (None, "none"), "--threads": threads is not None}
        if bench_cuda.is_cuda(device, only_cpu=only_cpu, only_cuda={"--batch": batch is not None}):
            _on_cuda(source, shape, layers, format_name, batch, settings, as_json=as_json)
            return
        _on_cpu(source, shape, layers, format_name, peers or "all", {**settings, "threads": threads}, as_json=as_json)


def _on_cuda(
    source: str | None, shape: str | None, layers: int | None, format_name: str, batch: str | None,
    settings: dict[str, Any], *, as_json: bool,
) -> None:  # fmt: skip
    if batch is not None:
        from coterie.bench.shapes import token_counts

        settings = {**settings, "batches": token_counts(batch)}
    if shape is None:
        _check_layers(layers)
    else:
        shape, format_name = _one_of_each(source, shape, layers, format_name)
    bench_cuda.model(source, shape, layers, format_name, settings, as_json=as_json)


def _on_cpu(
    source: str | None, shape: str | None, layers: int | None, format_name: str, peers: str,
    given: dict[str, Any], *, as_json: bool,
) -> None:  # fmt: skip
    from coterie.bench import model as measured
    from coterie.bench import model_table
    from coterie.bench.shapes import chosen

    named = [] if peers == "none" else chosen(peers, dict.fromkeys(measured.PEERS), "peer")
    settings = measured.Settings(**given, peers=named)
    make = _from_disk(source, layers) if shape is None else _random(source, shape, layers, format_name, settings.peers)
    found = model_table.record(settings, measured.run(settings, make, _progress))
    if as_json:
        print_json(found)
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    from coterie.bench import model_table, table

    console = stdout()
    console.print(model_table.heading(found))
    console.print()
    # A table of figures is no use with its columns cut: a narrow terminal folds its lines instead.
    rows, width = model_table.rows(found), console.width
    console.width = max(width, table.width(rows))
    console.print(rows)
    console.width = width
    console.print()
    console.print(model_table.notes(found))


def _check_layers(layers: int | None) -> None:
    from coterie.errors import ArgumentError

    if layers is not None:
        raise ArgumentError("--layers belongs to --shape; expected a shape, or no number of layers", code="bench")


def _from_disk(source: str | None, layers: int | None) -> "Callable[[], Subject]":
    from coterie.bench.subjects import from_disk

    _check_layers(layers)
    return lambda: from_disk(source)


def _one_of_each(source: str | None, shape: str, layers: int | None, format_name: str) -> tuple[str, str]:
    """The one shape and the one format, by name, checked together with what else was asked for."""
    from coterie.bench.real_models import REAL_MODELS
    from coterie.bench.shapes import FORMATS, chosen
    from coterie.errors import ArgumentError

    if source is not None:
        raise ArgumentError(f"both {source!r} and --shape {shape} were given; expected one of them", code="bench")
    (name, *others), (fmt, *formats) = chosen(shape, REAL_MODELS, "shape"), chosen(format_name, FORMATS, "format")
    if others or formats:
        raise ArgumentError("expected one shape and one format", code="bench")
    real = REAL_MODELS[name]
    if layers is not None and layers > real.n_layers:
        raise ArgumentError(f"--layers is {layers}, expected at most the {real.n_layers} of {real.title}", code="bench")
    return name, fmt


def _random(
    source: str | None, shape: str, layers: int | None, format_name: str, peers: object
) -> "Callable[[], Subject]":
    from coterie.bench.real_models import REAL_MODELS
    from coterie.bench.shapes import FORMATS
    from coterie.bench.subjects import from_shape, layers_that_fit

    name, fmt = _one_of_each(source, shape, layers, format_name)
    real = REAL_MODELS[name]

    def make() -> "Subject":
        room = layers_that_fit(real, FORMATS[fmt], 2 if peers else 1, layers)
        _progress(
            f"{real.title}: {room.n_layers} of {real.n_layers} layers, {room.needed / 2**30:.1f} GiB for everybody's "
            f"weights, {room.available / 2**30:.1f} GiB available"
        )
        return from_shape(real, room.n_layers, FORMATS[fmt], fmt)

    return make


def _progress(text: str) -> None:
    say(visible(text), style="dim")
