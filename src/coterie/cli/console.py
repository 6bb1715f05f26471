"""Where things are printed, and the one rule about text that others wrote: it may not steer the terminal."""

import json
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from coterie.errors import MemoryShortage

KEPT_IN_TEXT = "\n\t"
"""Control characters that generated text may hold on a terminal."""


def stderr() -> Console:
    """A console on standard error; colours only on a terminal, and never where NO_COLOR is set."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def stdout() -> Console:
    """A console on standard output, for tables."""
    return Console(highlight=False, markup=False, emoji=False)


def visible(text: str, *, keep: str = "") -> str:
    """`text` with every control and format character (escapes, bidirectional marks, lone surrogates) spelled out.

    File names, tensor names and generated text are written by strangers: printed raw they could move the cursor,
    hide a line or fake one.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _steers(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def _steers(character: str) -> bool:
    # ZERO WIDTH JOINER and NON-JOINER are format characters too, but emoji and several scripts need them.
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in "\u200c\u200d"


def say(text: str | Text, style: str = "") -> None:
    """A line on standard error: wrapped between words on a terminal, one line where nobody looks."""
    console = stderr()
    line = Text(text, style=style) if isinstance(text, str) else text
    console.print(line, soft_wrap=not console.is_terminal)


@contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Inside, what the library warns of is one line on the console; warnings of others are shown as ever."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", MemoryShortage)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
            if issubclass(category, MemoryShortage):
                line = Text.assemble(("warning", "bold yellow"), " ", visible(str(message)))
                console.print(line, soft_wrap=not console.is_terminal)
            else:
                others(message, category, *rest)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def aside(text: str) -> None:
    """A piece of generated text that is not the result: dim, on standard error, without what could steer a terminal."""
    console = stderr()
    shown = visible(text, keep=KEPT_IN_TEXT) if console.is_terminal else text
    console.print(Text(shown, style="dim"), end="", soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON object on standard output, in ASCII, so that neither an encoding nor a terminal can change it."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def print_json_line(value: Any) -> None:
    """`print_json` on a single line, where one object follows another."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


def write_text(text: str) -> None:
    """Write a piece of generated text to standard output, at once; on a terminal without what could steer it."""
    sys.stdout.write(visible(text, keep=KEPT_IN_TEXT) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def silence_stdout() -> None:
    """Point standard output nowhere, after its reader has gone: the flush at exit must not complain."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)
