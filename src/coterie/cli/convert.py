"""`coterie convert`: an unquantised checkpoint in, a quantised one in MLX's format out."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.console import print_json, say, stderr, visible
from coterie.cli.failures import guarded
from coterie.cli.options import AsJson, Debug
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.checkpoint import ConversionReport, LayerFormat, NameMap

UNQUANTISED = "none"
"""In place of a mode or of a number of bits: leave the weights as they are."""

_OVERRIDE = re.compile(r"(.+)=(?:(none)|(?=.)([0-9]{0,3})(?::([0-9]{0,4})(?::(\w*))?)?)", re.DOTALL)
"""The pattern is a regular expression and may itself hold "=", so the last one divides."""


def convert(
    source: Annotated[str, typer.Argument(help="A folder or a hub id.", show_default=False)],
    target: Annotated[str, typer.Argument(help="The folder to write.", show_default=False)],
    bits: Annotated[
        int | None, typer.Option(help="Bits a code; the mode's own by default.", show_default=False)
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(help="Codes a scale; the mode's own by default.", show_default=False)
    ] = None,
    mode: Annotated[
        str, typer.Option(help="affine, mxfp4, mxfp8, nvfp4; none changes names and dtype only.")
    ] = "affine",
    override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=BITS[:GROUP[:MODE]]",
            help="Another format, or none, for layers whose path matches; may be given again, the first match wins.",
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
        rules = [layer_format(text) for text in override or ()]
        quantized = mode != UNQUANTISED
        if not quantized and (bits is not None or group_size is not None or rules):
            raise RequestError("--mode none quantises nothing; it takes no --bits, --group-size or --override")
        from coterie.checkpoint import convert as convert_checkpoint

        started = time.perf_counter()
        with progress_bar(f"Converting {visible(source)}") as progress:
            report = convert_checkpoint(
                source,
                target,
                names_of,
                quantized=quantized,
                bits=bits,
                group_size=group_size,
                mode=mode if quantized else "affine",
                overrides=rules,
                dtype=dtype,
                force=force,
                progress=progress,
            )
        show(report, target, time.perf_counter() - started, as_json=as_json)


def names_of(config: "Mapping[str, Any]") -> "NameMap":
    """The weight-name map of the family that a config asks for."""
    from coterie.models.families import family_of

    return family_of(config).name_map(config)


def layer_format(text: str) -> "LayerFormat":
    """`pattern=bits[:group[:mode]]` or `pattern=none` as a rule; an empty field is the mode's own value."""
    from coterie.checkpoint import LayerFormat

    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise RequestError(
            f"--override {text!r} is not PATTERN=BITS[:GROUP[:MODE]] or PATTERN=none; for example '.*down_proj=6:64'",
            code="override",
        )
    pattern, unquantised, bits, group_size, mode = match.groups()
    try:
        re.compile(pattern)
    except re.error as error:
        raise RequestError(
            f"--override {text!r}: {pattern!r} is not a regular expression: {error}", code="override"
        ) from None
    if unquantised:
        return LayerFormat(pattern, quantized=False)
    return LayerFormat(pattern, int(bits) if bits else None, int(group_size) if group_size else None, mode or None)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on standard error; the callable takes bytes done, bytes in all and the tensor's name."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = stderr()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int, name: str) -> None:
            del name
            bar.update(task, completed=done, total=total)

        yield advance


def show(report: "ConversionReport", target: str, seconds: float, *, as_json: bool) -> None:
    """Say what was written, and which layers stayed as they were, for which reason."""
    if as_json:
        print_json(
            {
                "target": target,
                "seconds": seconds,
                "n_tensors": report.n_tensors,
                "n_quantized": report.n_quantized,
                "n_weights": report.n_weights,
                "nbytes": report.nbytes,
                "bits_per_weight": report.bits_per_weight,
                "kept": dict(report.kept),
                "dropped": list(report.dropped),
            }
        )
        return
    summary = (
        f"{visible(target)}: {report.n_tensors} tensors, {report.n_quantized} matrices quantised, "
        f"{report.nbytes / 1e6:,.1f} MB, {report.bits_per_weight:.2f} bits a weight, {seconds:.1f} s"
    )
    say(summary)
    for reason, n_layers in Counter(report.kept.values()).items():
        say(f"matrices not quantised: {n_layers}, {visible(reason)}", style="dim")
    if report.dropped:
        say(f"tensors left out because nothing uses them: {len(report.dropped)}", style="dim")
