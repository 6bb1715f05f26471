"""`coterie bench`: the experts layer measured beside the limits of the machine and other libraries."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli import bench_cuda
from coterie.cli.bench_bridge import bridge
from coterie.cli.bench_model import model
from coterie.cli.console import print_json, say, stdout, visible
from coterie.cli.failures import guarded
from coterie.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from coterie.bench.ops import Settings

bench = typer.Typer(no_args_is_help=True, help="Measure the layer, and whole models, on this machine.")
bench.command()(model)
bench.command()(bridge)

_QUICK = {"shapes": "gemma4,qwen3", "formats": "4bit", "peers": "none", "repeats": 5, "seconds": 0.1}
_SECONDS_ON_CUDA = 0.004

Shapes = Annotated[str | None, typer.Option(help="gemma4, qwen3, mixtral, gpt-oss, or all.", show_default="all")]
Formats = Annotated[str | None, typer.Option(help="4bit, 8bit, mxfp4, on cuda bf16, or all.", show_default="all")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="Threads; one for each core if not given.")]
Repeats = Annotated[int | None, typer.Option(min=1, help="Rounds.", show_default="7")]
Seconds = Annotated[
    float | None,
    typer.Option(
        min=0.0, help="Least seconds of calls in a row, for each row and round.", show_default="0.1; 0.004 on cuda"
    ),
]


@bench.command()
def ops(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    shapes: Shapes = None,
    formats: Formats = None,
    tokens: Annotated[
        str | None,
        typer.Option(help="Numbers of tokens, with commas between.", show_default="1,64,512; 1,8,64,512,4096 on cuda"),
    ] = None,
    modes: Annotated[str | None, typer.Option(help="This library's modes, or all.", show_default="all")] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="mlx, torch, onnxruntime, llama.cpp; on cuda torch, transformers; all, or none.", show_default="all"
        ),
    ] = None,
    peer_module: Annotated[
        list[Path] | None,
        typer.Option(
            help="A Python file whose `prepare` makes a peer on cuda; may be given again.", show_default=False
        ),
    ] = None,
    repeats: Repeats = None,
    seconds: Seconds = None,
    threads: Threads = None,
    busy: Annotated[int, typer.Option(min=0, max=256, help="Measure decoding beside so many busy processes, too.")] = 0,
    slow: Annotated[bool, typer.Option("--slow", help="Let very slow peers take prefill, too.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="About a minute: two shapes, 4 bits, no peers.")] = False,
    llama_bench: Annotated[
        Path | None, typer.Option(help="llama.cpp's test-backend-ops: run it and list its figures.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the rows against the roofline, as PNG.", show_default=False)
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables in Markdown, on cuda.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure decode and prefill of experts layers at the dimensions of real models, beside the machine's limits."""
    with guarded(as_json=as_json, debug=debug):
        given = {"shapes": shapes, "formats": formats, "peers": peers, "repeats": repeats, "seconds": seconds}
        only_cpu = {
            "--modes": modes is not None,
            "--threads": threads is not None,
            "--busy": busy > 0,
            "--slow": slow,
            "--llama-bench": llama_bench is not None,
        }
        on_cuda = bench_cuda.is_cuda(
            device, only_cpu=only_cpu, only_cuda={"--peer-module": bool(peer_module), "--markdown": markdown}
        )
        usual = {"shapes": "all", "formats": "all", "peers": "all", "repeats": 7, "seconds": 0.1}
        chosen = {**usual, **(_QUICK if quick else {})}
        if on_cuda:
            chosen["seconds"] = _SECONDS_ON_CUDA
        chosen |= {name: value for name, value in given.items() if value is not None}
        if plot is not None:
            _check_plot(plot)
        if on_cuda:
            bench_cuda.ops(chosen, tokens, peer_module or (), plot, as_json=as_json, markdown=markdown)
            return
        settings = replace(_settings(chosen, tokens, modes), threads=threads, busy=busy, slow=slow)
        record = _measure(settings, llama_bench)
        if plot is not None:
            from coterie.bench.plot import write

            write(record, plot)
            _progress(f"drawn: {plot}")
        if as_json:
            print_json(record)
            return
        _print(record)


@bench.command()
def switch(
    shape: Annotated[str, typer.Option(help="The shape whose gate matrices are multiplied.")] = "qwen3",
    formats: Formats = None,
    tokens: Annotated[str, typer.Option(help="Tokens of each expert.")] = ",".join(map(str, range(1, 17))),
    repeats: Repeats = None,
    seconds: Seconds = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Time the two ways of a product with few tokens, to see where the switch between them belongs."""
    with guarded(as_json=as_json, debug=debug):
        from coterie.bench import switch as measured
        from coterie.bench import table
        from coterie.bench.shapes import FORMATS, SHAPES, chosen, token_counts

        names = chosen(formats or "all", FORMATS, "format")
        (name,) = chosen(shape, SHAPES, "shape")[:1]
        rows = measured.run(SHAPES[name], names, token_counts(tokens), repeats or 7, seconds or 0.05, _progress)
        figures = [asdict(row) for row in rows]
        if as_json:
            print_json({"shape": name, "rows": figures})
            return
        stdout().print(table.switch(figures))


def _settings(given: dict[str, Any], tokens: str | None, modes: str | None) -> "Settings":
    from coterie.bench.entrants import MODES
    from coterie.bench.ops import Settings
    from coterie.bench.peers import PEERS
    from coterie.bench.shapes import FORMATS, SHAPES, TOKENS, chosen, token_counts

    return Settings(
        shapes=chosen(given["shapes"], SHAPES, "shape"),
        formats=chosen(given["formats"], FORMATS, "format"),
        tokens=TOKENS if tokens is None else token_counts(tokens),
        peers=[] if given["peers"] == "none" else chosen(given["peers"], PEERS, "peer"),
        modes=chosen(modes or "all", MODES, "mode"),
        repeats=given["repeats"],
        seconds=given["seconds"],
    )


def _measure(settings: "Settings", llama_bench: Path | None) -> dict[str, Any]:
    from coterie.bench import external
    from coterie.bench.ops import run
    from coterie.bench.record import record

    foreign: list[dict[str, Any]] = []
    if llama_bench is not None:
        _progress(f"running {llama_bench.name}")
        foreign = external.run(llama_bench)
    return record(settings, run(settings, _progress), foreign)


def _check_plot(path: Path) -> None:
    """Refuse before minutes of measuring what could not be drawn after them."""
    from coterie.errors import ArgumentError, BackendUnavailableError

    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise BackendUnavailableError(
            f"--plot needs matplotlib ({cause}): pip install 'coterie[bench]'", code="matplotlib"
        ) from cause
    if path.suffix.lower() != ".png" or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ArgumentError(
            f"--plot is {str(path)!r}, expected the name of a .png file in a folder that exists", code="bench"
        )


def _print(record: dict[str, Any]) -> None:
    from coterie.bench import table

    console = stdout()
    console.print(table.heading(record))
    console.print()
    # A table of figures is no use with its columns cut: a narrow terminal folds its lines instead.
    rows, width = table.rows(record), console.width
    console.width = max(width, table.width(rows))
    console.print(rows)
    console.width = width
    console.print()
    console.print(table.notes(record))
    if record["external"]:
        console.print()
        console.print(table.external(record["external"]))


def _progress(text: str) -> None:
    say(visible(text), style="dim")
