"""`coterie mlx-lm`: the commands of mlx-lm, and programs that use it, with every model patched as it is loaded."""

import runpy
import sys
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.console import say, visible
from coterie.cli.failures import Exit, guarded
from coterie.cli.options import Debug
from coterie.errors import CoterieError, RequestError

if TYPE_CHECKING:
    from coterie.integrations.mlx_lm import Patch

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""What stands behind the name of the command belongs to it."""

_READ_ALL_LOGITS = ("evaluate", "perplexity")


def mlx_lm(
    context: typer.Context,
    program: Annotated[str, typer.Argument(help="A command of mlx-lm, such as generate, or a Python file.")],
    linears: Annotated[
        bool, typer.Option("--linears/--no-linears", help="On the CPU, swap quantised linear layers, too.")
    ] = True,
    all_logits: Annotated[
        bool,
        typer.Option(
            "--all-logits",
            help="Compute the logits of whole prompts at once; for programs that read them, as evaluate does.",
        ),
    ] = False,
    debug: Debug = False,
) -> None:
    """Run mlx-lm with Coterie's kernels: coterie mlx-lm generate --model ... --prompt ..."""
    with guarded(debug=debug):
        from coterie.integrations.mlx_lm import patched_loading

        with patched_loading(linears=linears, all_logits=all_logits or program in _READ_ALL_LOGITS, tell=_tell):
            try:
                _run(program, context.args)
            except (CoterieError, BrokenPipeError):
                raise
            except Exception:
                # The program's own error, told as Python tells it.
                traceback.print_exc()
                raise typer.Exit(Exit.INTERNAL) from None


def _run(program: str, arguments: list[str]) -> None:
    before = sys.argv
    try:
        if program.endswith(".py"):
            if not Path(program).is_file():
                raise RequestError(f"there is no file {program!r}", code="mlx_lm_program")
            sys.argv = [program, *arguments]
            runpy.run_path(program, run_name="__main__")
        else:
            _check_command(program)
            from mlx_lm.cli import main

            sys.argv = ["mlx_lm", program, *arguments]
            main()
    finally:
        sys.argv = before


def _check_command(program: str) -> None:
    if program.isidentifier() and any(find_spec(f"mlx_lm.{folder}{program}") for folder in ("", "quant.")):
        return
    raise RequestError(
        f"mlx-lm has no command {program!r}; expected one of those that `mlx_lm --help` lists, or a .py file",
        code="mlx_lm_program",
    )


def _tell(done: "Patch") -> None:
    n_others = len(done.swapped) - done.n_experts_layers
    say(
        visible(f"coterie computes {done.n_experts_layers} layers of experts and {n_others} other quantised matrices"),
        style="dim",
    )
    for path, reason in done.left.items():
        say(visible(f"left as it is: {path}: {reason}"), style="dim")
