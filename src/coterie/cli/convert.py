"""`coterie convert`: a checkpoint in, a quantised checkpoint in MLX's format out."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from coterie.cli.console import print_json, stderr, visible
from coterie.cli.failures import guarded
from coterie.cli.options import AsJson, Debug
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.checkpoint.names import LayerFormat


def convert(
    source: Annotated[str, typer.Argument(help="A folder or a hub id.", show_default=False)],
    target: Annotated[str, typer.Argument(help="The folder to write.", show_default=False)],
    bits: Annotated[
        int | None, typer.Option(help="Bits a code; the mode's own by default.", show_default=False)
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Codes a scale; the mode's own by default.", show_default=False)
    ] = None,
    mode: Annotated[str, typer.Option(help="affine, mxfp4, mxfp8 or nvfp4.")] = "affine",
    override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=BITS[:GROUP[:MODE]]",
            help="Another format for the layers whose path matches; may be given again, the first match wins.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16 for what is not quantised.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the target if it is there.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Quantise a checkpoint and write it in MLX's format.

    The target appears whole or not at all: an interrupted conversion leaves what was there before.
    """
    with guarded(as_json=as_json, debug=debug):
        rules = tuple(layer_format(text) for text in override or ())
        started = time.perf_counter()
        with progress_bar(f"Converting {visible(source)}") as progress:
            written = run(
                source,
                target,
                bits=bits,
                group_size=group_size,
                mode=mode,
                overrides=rules,
                dtype=dtype,
                force=force,
                progress=progress,
            )
        report(written, target, time.perf_counter() - started, as_json=as_json)


def layer_format(text: str) -> "LayerFormat":
    """`pattern=bits[:group[:mode]]` as a rule; an empty field takes the mode's own value."""
    from coterie.checkpoint.names import LayerFormat

    # The pattern is a regular expression and may itself hold "=", so the last one divides.
    pattern, _, fields = text.rpartition("=")
    parts = fields.split(":")
    bits, group_size, mode = [*parts, "", ""][:3]
    if not pattern or len(parts) > 3 or not all(field == "" or field.isdecimal() for field in (bits, group_size)):
        raise RequestError(
            f"--override {text!r} is not PATTERN=BITS[:GROUP[:MODE]]; write for example '.*down_proj=6:64'",
            code="override",
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise RequestError(
            f"--override {text!r}: {pattern!r} is not a regular expression: {error}", code="override"
        ) from None
    return LayerFormat(pattern, int(bits) if bits else None, int(group_size) if group_size else None, mode or None)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error; the callable takes bytes done, bytes in all and the tensor's name."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int, name: str) -> None:
            del name
            bar.update(task, completed=done, total=total)

        yield advance


def run(source: str, target: str, **options: Any) -> Any:
    """The conversion itself."""
    from coterie.checkpoint import convert as convert_checkpoint

    return convert_checkpoint(source, target, **options)


def report(written: Any, target: str, seconds: float, *, as_json: bool) -> None:
    """Say what was written, and where."""
    if as_json:
        print_json({"target": target, "seconds": seconds})
        return
    stderr().print(Text(f"{visible(target)} written in {seconds:.1f} s ({written})"), soft_wrap=True)
