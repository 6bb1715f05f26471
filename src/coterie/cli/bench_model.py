"""`coterie bench model`: a whole model measured beside the limit of the machine and llama.cpp."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    prompt: Annotated[int, typer.Option(min=1, help="Tokens in the cache before the first step.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Steps of one token, in each round.")] = 64,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens of the prompt whose pass is timed.")] = 512,
    peers: Annotated[str, typer.Option(help="llama.cpp, all, or none.")] = "all",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads; one for each core if not given.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a model: first token, decode, prefill and peak memory, beside the read bandwidth and llama.cpp."""
    with guarded(as_json=as_json, debug=debug):
        from coterie.bench import model as measured
        from coterie.bench import model_table
        from coterie.bench.shapes import chosen

        settings = measured.Settings(
            prompt=prompt,
            steps=steps,
            prefill=prefill,
            repeats=repeats,
            peers=[] if peers == "none" else chosen(peers, dict.fromkeys(measured.PEERS), "peer"),
            threads=threads,
        )
        make = (
            _from_disk(source, layers) if shape is None else _random(source, shape, layers, format_name, settings.peers)
        )
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


def _from_disk(source: str | None, layers: int | None) -> "Callable[[], Subject]":
    from coterie.bench.subjects import from_disk
    from coterie.errors import ArgumentError

    if layers is not None:
        raise ArgumentError("--layers belongs to --shape; expected a shape, or no number of layers", code="bench")
    return lambda: from_disk(source)


def _random(
    source: str | None, shape: str, layers: int | None, format_name: str, peers: object
) -> "Callable[[], Subject]":
    from coterie.bench.real_models import REAL_MODELS
    from coterie.bench.shapes import FORMATS, chosen
    from coterie.bench.subjects import from_shape, layers_that_fit
    from coterie.errors import ArgumentError

    if source is not None:
        raise ArgumentError(f"both {source!r} and --shape {shape} were given; expected one of them", code="bench")
    (name, *others), (fmt, *formats) = chosen(shape, REAL_MODELS, "shape"), chosen(format_name, FORMATS, "format")
    if others or formats:
        raise ArgumentError("expected one shape and one format", code="bench")
    real = REAL_MODELS[name]
    if layers is not None and layers > real.n_layers:
        raise ArgumentError(f"--layers is {layers}, expected at most the {real.n_layers} of {real.title}", code="bench")

    def make() -> "Subject":
        if layers is not None and layers > real.n_layers:
            raise ArgumentError(
                f"--layers is {layers}, expected at most the {real.n_layers} of {real.title}", code="bench"
            )
        room = layers_that_fit(real, FORMATS[fmt], 2 if peers else 1, layers)
        _progress(
            f"{real.title}: {room.n_layers} of {real.n_layers} layers, {room.needed / 2**30:.1f} GiB for everybody's "
            f"weights, {room.available / 2**30:.1f} GiB available"
        )
        return from_shape(real, room.n_layers, FORMATS[fmt], fmt)

    return make


def _progress(text: str) -> None:
    say(visible(text), style="dim")
