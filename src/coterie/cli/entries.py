"""What somebody types, or a pipe brings: one entry after the other, of a line or of a block of lines.

a line                    one entry
\"\"\" alone on a line       begins a block, and ends it: one entry with all lines between
/word ...                 a command; // at the start is a message that begins with one /
"""

import sys
from contextlib import suppress
from dataclasses import dataclass

from coterie.errors import RequestError

FENCE = '"""'


@dataclass(frozen=True, slots=True)
class Entry:
    """A message, or a command without its slash."""

    text: str
    is_command: bool = False


class Entries:
    """The entries of standard input. On a terminal lines can be edited and earlier ones called back."""

    def __init__(self) -> None:
        self.is_interactive = sys.stdin.isatty()
        self._n_lines = 0
        if self.is_interactive:
            with suppress(ImportError):
                import readline  # noqa: F401 - `input` uses it once it is there

    def read(self) -> Entry | None:
        """The next entry; None at the end. Ctrl-C is a KeyboardInterrupt; bytes that are not UTF-8 a `RequestError`."""
        first = self._line("> ")
        if first is None:
            return None
        if first == FENCE:
            return Entry("\n".join(self._block()))
        if first.startswith("//"):
            return Entry(first[1:])
        return Entry(first[1:], is_command=True) if first.startswith("/") else Entry(first)

    def _block(self) -> list[str]:
        """The lines up to the closing fence, or to the end: what came of a block is not thrown away."""
        lines = []
        while (line := self._line(". ")) is not None and line != FENCE:
            lines.append(line)
        return lines

    def _line(self, prompt: str) -> str | None:
        if not self.is_interactive:
            return self._piped()
        if not sys.stdout.isatty():
            # `input` would write its prompt into the file that takes the replies.
            sys.stderr.write(prompt)
            sys.stderr.flush()
            prompt = ""
        try:
            return input(prompt)
        except EOFError:
            sys.stderr.write("\n")
            return None

    def _piped(self) -> str | None:
        data = sys.stdin.buffer.readline()
        self._n_lines += 1
        if not data:
            return None
        try:
            return data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise RequestError(
                f"standard input is not UTF-8: byte {error.start + 1} of line {self._n_lines} is "
                f"0x{data[error.start]:02x}; convert it first",
                code="prompt_encoding",
            ) from None
