"""How a command ends: one exit code a kind of failure, one readable line, a traceback only when asked for.

0 done                      4 unsupported input, or a back end that is not there
1 internal error            5 request: prompt, sampling, an argument out of range
2 usage                     6 numeric (NaN, infinity) or capacity (memory, context)
3 checkpoint or config      130 interrupted        141 the reader of standard output went away
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer
from rich.text import Text

from coterie.cli.console import print_json, say, silence_stdout, visible
from coterie.cli.interrupts import Interrupts
from coterie.errors import (
    ArgumentError,
    BackendUnavailableError,
    CapacityError,
    CheckpointError,
    ConfigError,
    CoterieError,
    NumericError,
    UnsupportedError,
)


class Exit(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    INTERNAL = 1
    USAGE = 2
    CHECKPOINT = 3
    UNSUPPORTED = 4
    REQUEST = 5
    NUMERIC = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141


_EXIT_OF_KIND: tuple[tuple[type[CoterieError], Exit], ...] = (
    (CheckpointError, Exit.CHECKPOINT),
    (ConfigError, Exit.CHECKPOINT),
    (UnsupportedError, Exit.UNSUPPORTED),
    (BackendUnavailableError, Exit.UNSUPPORTED),
    (ArgumentError, Exit.REQUEST),
    (NumericError, Exit.NUMERIC),
    (CapacityError, Exit.NUMERIC),
)


def exit_code(error: BaseException) -> Exit:
    """The exit code for an error: by its kind for a `CoterieError`, internal for anything unforeseen."""
    if isinstance(error, MemoryError):
        return Exit.NUMERIC
    return next((code for kind, code in _EXIT_OF_KIND if isinstance(error, kind)), Exit.INTERNAL)


@contextmanager
def guarded(*, as_json: bool = False, debug: bool = False) -> Iterator[Interrupts]:
    """Run a command's body; every failure becomes its exit code and one report, as text or as JSON."""
    interrupts = Interrupts()
    try:
        with interrupts:
            yield interrupts
            sys.stdout.flush()
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        report_interrupt(as_json=as_json)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except BrokenPipeError:
        silence_stdout()
        raise typer.Exit(Exit.BROKEN_PIPE) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        if interrupts.struck:
            report_interrupt(as_json=as_json)
            raise typer.Exit(Exit.INTERRUPTED) from None
        report(error, as_json=as_json)
        raise typer.Exit(exit_code(error)) from None


def report(error: Exception, *, as_json: bool) -> None:
    """Say what went wrong: a JSON object on standard output, or a line on standard error."""
    code, message = described(error)
    if as_json:
        print_json({"error": {"code": code, "message": message}})
        return
    say(Text.assemble(("error", "bold red"), (f" [{code}] ", "red"), message))


def report_interrupt(*, as_json: bool) -> None:
    """Say that Ctrl-C ended it, in a word."""
    if as_json:
        print_json({"error": {"code": "interrupted", "message": "ended by Ctrl-C"}})
    else:
        say("interrupted", style="dim")


def described(error: Exception) -> tuple[str, str]:
    """(code, message) of an error, with nothing in them that could steer a terminal."""
    if isinstance(error, CoterieError):
        return error.code, visible(str(error))
    if isinstance(error, MemoryError):
        return (
            CapacityError.default_code,
            "memory ran out; a smaller model, fewer tokens or a shorter prompt needs less",
        )
    kind = type(error).__name__
    return "internal", f"{kind}: {visible(str(error))} (unforeseen; --debug shows where)"
