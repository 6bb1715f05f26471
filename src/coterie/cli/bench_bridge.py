"""`coterie bench bridge`: another library as it is, and with Coterie's kernels in it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.console import print_json, say, stdout, visible
from coterie.cli.failures import guarded
from coterie.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from coterie.bench.bridges.rounds import Maker
    from coterie.bench.real_models import RealModel

PEERS = {
    "mlx-lm": "pip install 'mlx-lm>=0.32', on Linux with 'mlx[cpu]'",
    "transformers": "pip install 'coterie[transformers]'",
}
"""Libraries that a bridge leads to, and how to get them."""


def bridge(
    peer: Annotated[str, typer.Option(help="The library: mlx-lm or transformers.")] = "mlx-lm",
    shape: Annotated[
        str, typer.Option(help="Whose dimensions: qwen3-30b-a3b, mixtral-8x7b, gpt-oss-20b, ...")
    ] = "qwen3-30b-a3b",
    layers: Annotated[int, typer.Option(min=1, max=1000, help="Layers of the shape.")] = 2,
    format_name: Annotated[str, typer.Option("--format", help="4bit, 8bit or mxfp4.")] = "4bit",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens in the cache before the first step.")] = 128,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens of the prompt whose pass is timed.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps of one token, in each round.")] = 32,
    peer_steps: Annotated[int, typer.Option(min=1, help="The same, of the library as it is.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads; one for each core if not given.")
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure another library on a model of random packed weights, before and after our kernels are put into it."""
    with guarded(as_json=as_json, debug=debug):
        from coterie.bench.bridges import rounds, table
        from coterie.bench.real_models import REAL_MODELS
        from coterie.bench.shapes import FORMATS

        make = _maker(_one(peer, dict.fromkeys(PEERS), "peer"))
        real = REAL_MODELS[_one(shape, REAL_MODELS, "shape")]
        fmt = FORMATS[_one(format_name, FORMATS, "format")]
        _check_layers(layers, real)
        settings = rounds.Settings(prompt, prefill, steps, peer_steps, repeats, threads)
        report = rounds.run(make, settings, real, layers, fmt, lambda text: say(visible(text), style="dim"))
        found = table.record(settings, report)
        if as_json:
            print_json(found)
            return
        _print(found)


def _one(text: str, known: Mapping[str, object], what: str) -> str:
    from coterie.bench.shapes import chosen
    from coterie.errors import ArgumentError

    name, *others = chosen(text, known, what)
    if others:
        raise ArgumentError(f"expected one {what}, found {text!r}", code="bench")
    return name


def _maker(peer: str) -> "Maker":
    from coterie.errors import BackendUnavailableError

    try:
        if peer == "transformers":
            from coterie.bench.bridges import transformers

            return transformers.ways
        from coterie.bench.bridges import mlx_lm
    except ImportError as cause:
        raise BackendUnavailableError(
            f"{peer} cannot be imported ({cause}): {PEERS[peer]}", code="bench_peer"
        ) from cause
    return mlx_lm.ways


def _check_layers(n_layers: int, real: "RealModel") -> None:
    from coterie.errors import ArgumentError

    if n_layers > real.n_layers:
        raise ArgumentError(
            f"--layers is {n_layers}, expected at most the {real.n_layers} of {real.title}", code="bench"
        )


def _print(found: dict[str, Any]) -> None:
    from coterie.bench.bridges import table
    from coterie.bench.table import width as width_of

    console = stdout()
    console.print(table.heading(found))
    console.print()
    # A table of figures is no use with its columns cut: a narrow terminal folds its lines instead.
    rows, width = table.rows(found), console.width
    console.width = max(width, width_of(rows))
    console.print(rows)
    console.width = width
    console.print()
    console.print(table.notes(found))
