"""A program behind a terminal of its own: keys go in, the screen is read until something stands there."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
OWN_TERMINAL = "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
"""First lines of a program for which Ctrl-C at its terminal is a signal."""


class Terminal:
    """Runs Python `code` with `arguments`. Standard output may go to a file instead."""

    def __init__(self, code: str, *arguments: str, stdout: Any = None) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm"}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path[1:]])
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL + code, *arguments],
            stdin=theirs,
            stdout=theirs if stdout is None else stdout,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._raw = b""
        self._seen = 0

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def screen(self) -> str:
        """All that was written so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._raw.decode("utf-8", "replace"))

    def type(self, keys: str) -> None:
        """Press these keys."""
        os.write(self._ours, keys.encode())

    def answer(self, keys: str, prompt: str = "> ") -> None:
        """Wait for the prompt, then press these keys: a key pressed before it may be lost with the terminal's mode."""
        self.expect(prompt)
        self.type(keys)

    def expect(self, text: str, *, within: float = 120.0) -> str:
        """Read until `text` stands on the screen after what was expected before; returns all between."""
        end = time.monotonic() + within
        while text not in self.screen[self._seen :]:
            assert self._read(end - time.monotonic()), f"expected {text!r} on the screen, found {self.screen!r}"
        start = self._seen
        self._seen = self.screen.index(text, start) + len(text)
        return self.screen[start : self._seen]

    def end(self) -> int:
        """Read until the program ends; its exit code."""
        while self._read(60.0):
            pass
        return self.process.wait(timeout=60)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], max(0.0, seconds))[0]:
            return False
        try:
            data = os.read(self._ours, 65536)
        except OSError:
            return False
        self._raw += data
        return bool(data)
