"""`coterie inspect`: a text through a model, and what its experts did; a table, JSON, plots, a page."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import say, stderr, stdout, visible
from coterie.cli.failures import guarded
from coterie.cli.generate import load
from coterie.cli.interrupts import Interrupts
from coterie.cli.options import AsJson, Debug, Device
from coterie.errors import CapacityError, RequestError

if TYPE_CHECKING:
    from coterie.inspect import Report, Trace

MAX_TEXT = 16 << 20
"""Bytes of a text; its tokens and their routing are held in memory."""


def inspect(
    model: Annotated[
        str | None, typer.Argument(help="A folder or a hub id. Without it, the bundled model.", show_default=False)
    ] = None,
    text: Annotated[
        str | None, typer.Option("--text", "-t", help="The text, a UTF-8 file; - reads standard input.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A recorded trace instead of a model and a text.", show_default=False)
    ] = None,
    layer: Annotated[int | None, typer.Option(min=0, help="Show this layer's experts.", show_default=False)] = None,
    expert: Annotated[int | None, typer.Option(min=0, help="Show this expert of --layer.", show_default=False)] = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="Tokens and pairs in each list.")] = 10,
    least: Annotated[int, typer.Option(min=1, help="A token must occur so often before its lift is ranked.")] = 5,
    window: Annotated[
        int | None, typer.Option(min=1, help="Tokens that see each other.", show_default="the model's context")
    ] = None,
    record: Annotated[Path | None, typer.Option(help="Write the routing to this file.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page to this file.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write report.json, report.html and the plots into this folder.", show_default=False),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what the experts of a model do with a text: load, entropy, pairs, tokens.

    A text that is longer than the model's context is cut into windows, each read as if nothing came before it.
    """
    with guarded(as_json=as_json, debug=debug) as interrupts:
        _check(model, text, trace, layer, expert, window)
        _check_targets(out, *(path for path in (record, html) if path is not None))
        seen = _trace(model, text, trace, window, device, interrupts)
        if record is not None:
            from coterie.inspect import save

            save(seen, record)
            say(f"routing written: {visible(str(record))}", style="dim")
        from coterie.inspect import Report

        report = Report.of(seen, least=least, n_pairs=max(top, 20))
        if layer is not None:
            report.layer(layer).check_expert(expert)
        _write(report, html, out, layer, top)
        _show(report, layer, expert, top, as_json=as_json)


def _check(
    model: str | None, text: str | None, trace: Path | None, layer: int | None, expert: int | None, window: int | None
) -> None:
    """Refuse combinations that say two things, or too little."""
    if (text is None) == (trace is None):
        raise RequestError(
            f"{'neither' if text is None else 'both'} of --text and --trace given, expected one: a text to read, "
            "or a trace that was recorded",
            code="inspect_input",
        )
    if trace is not None and (model is not None or window is not None):
        raise RequestError("--trace takes no model and no --window: it holds what both did", code="inspect_input")
    if expert is not None and layer is None:
        raise RequestError("--expert needs --layer: experts of different layers are strangers", code="inspect_input")


def _check_targets(out: Path | None, *paths: Path) -> None:
    """Refuse before minutes of reading what could not be written after them."""
    folders = [path.parent for path in paths]
    if out is not None:
        from coterie.inspect import figures

        figures.check()
        folders.append(out if out.exists() else out.parent)
    for folder in folders:
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise RequestError(
                f"nothing can be written into {str(folder)!r}, expected a folder that exists; make it first",
                code="inspect_target",
            )
    for path in paths:
        if path.is_dir():
            raise RequestError(f"{str(path)!r} is a folder, expected the name of a file", code="inspect_target")


def _trace(
    model: str | None, text: str | None, trace: Path | None, window: int | None, device: str, interrupts: Interrupts
) -> "Trace":
    from coterie.inspect import read, record

    if text is None:
        assert trace is not None
        return read(trace)
    content = _read_text(text)
    if not content:
        raise RequestError(f"{_name(text)} is empty, expected a text", code="request_empty")
    loaded = load(model, device)
    with _progress("Reading the text") as advance:

        def step(done: int, total: int) -> None:
            interrupts.check()
            advance(done, total)

        return record(loaded, content, name=model or "the bundled model", window=window, progress=step)


def _read_text(argument: str) -> str:
    if argument == "-":
        data = sys.stdin.buffer.read(MAX_TEXT + 1)
    else:
        try:
            with open(argument, "rb") as file:
                data = file.read(MAX_TEXT + 1)
        except (OSError, ValueError) as error:
            raise RequestError(
                f"--text {argument!r} cannot be read ({error}), expected a text file, or - for standard input",
                code="text_file",
            ) from None
    if len(data) > MAX_TEXT:
        raise CapacityError(
            f"{_name(argument)} has more than {MAX_TEXT >> 20} MiB, which is the most; take a part of it",
            code="text_size",
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{_name(argument)} is not UTF-8: byte {error.start} of {len(data)} is 0x{data[error.start]:02x}; "
            "convert it first",
            code="text_encoding",
        ) from None


def _name(argument: str) -> str:
    return "standard input" if argument == "-" else f"--text {argument!r}"


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _write(report: "Report", html: Path | None, out: Path | None, layer: int | None, top: int) -> None:
    from coterie.inspect import files

    written = [] if html is None else [files.write_page(report, html, layer)]
    if out is not None:
        written += files.write_all(report, out, layer, top)
    for path in written:
        say(f"written: {visible(str(path))}", style="dim")


def _show(report: "Report", layer: int | None, expert: int | None, top: int, *, as_json: bool) -> None:
    if as_json:
        from coterie.inspect.summary import dumps, summary

        sys.stdout.write(dumps(summary(report, top)))
        sys.stdout.flush()
        return
    from coterie.cli import inspect_table as tables

    console = stdout()
    if layer is None:
        tables.overview(report, console)
    elif expert is None:
        tables.experts(report, report.layer(layer), top, console)
    else:
        tables.one_expert(report, report.layer(layer), expert, top, console)
