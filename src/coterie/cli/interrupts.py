"""Ctrl-C, wherever it strikes.

Python raises KeyboardInterrupt in whatever runs just then. While kernels are compiled that may be a callback out of
native code, which swallows it with a warning, or code that turns it into another error. So it is also remembered here:
a command asks between two steps, and an error after Ctrl-C counts as Ctrl-C.
"""

import signal
import sys
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """While it is entered, `struck` tells whether Ctrl-C came; a swallowed one leaves no traceback on the terminal."""

    def __init__(self) -> None:
        self.struck = False

    def __enter__(self) -> "Interrupts":
        self._hook = sys.unraisablehook
        self._handler = signal.getsignal(signal.SIGINT)
        sys.unraisablehook = self._report_unraisable
        signal.signal(signal.SIGINT, self._strike)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._handler)
        sys.unraisablehook = self._hook

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C came and was swallowed on its way."""
        if self.struck:
            raise KeyboardInterrupt

    def _strike(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.struck = True
        raise KeyboardInterrupt

    def _report_unraisable(self, unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._hook(unraisable)
