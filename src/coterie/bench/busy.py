"""Processes that keep cores busy, on and off, to see what a shared machine does to a kernel."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Busy:
    """`n` processes that count, stopped until `on`. They are pinned nowhere: the system moves them as it likes."""

    def __init__(self, n: int) -> None:
        # -I and -S: nothing of the environment is imported, so the processes are up in a moment.
        command = [sys.executable, "-I", "-S", "-c", "while True: pass"]
        self._processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(n)]
        self.off()

    def on(self) -> None:
        """Let them run."""
        self._signal(signal.SIGCONT)

    def off(self) -> None:
        """Stop them; they keep their memory and take no time."""
        self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """End them for good."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)


@contextmanager
def busy_processes(n: int) -> Iterator[Busy | None]:
    """`n` busy processes, stopped at first, ended at the end; None for no processes."""
    if n == 0:
        yield None
        return
    busy = Busy(n)
    try:
        yield busy
    finally:
        busy.end()
