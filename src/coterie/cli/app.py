"""The commands and what they have in common."""

from importlib import metadata
from typing import Annotated

import typer

from coterie.cli.bench import bench
from coterie.cli.chat import chat
from coterie.cli.convert import convert
from coterie.cli.doctor import doctor
from coterie.cli.generate import generate
from coterie.cli.info import info
from coterie.cli.inspect import inspect
from coterie.cli.mlx_lm import PASSED_ON, mlx_lm

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run mixture-of-experts models stored in MLX's format, on the machine you have.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"coterie {metadata.version('coterie')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version  # acted on by its callback


app.command()(generate)
app.command()(chat)
app.command()(convert)
app.command()(info)
app.command()(doctor)
app.command()(inspect)
app.command("mlx-lm", context_settings=PASSED_ON)(mlx_lm)
app.add_typer(bench, name="bench")
