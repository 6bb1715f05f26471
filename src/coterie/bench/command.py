"""How long a command takes to its first word: what a person waits for, imports and loading included."""

import subprocess
import sys
import time
from pathlib import Path

from coterie.bench.entrants import RefusedError

_PROMPT = "def read_lines(path):"
_TOKENS = 8


def first_output(folder: Path, repeats: int) -> list[float]:
    """Seconds from the start of `coterie generate` to its first output, `repeats` times after a run not counted.

    `RefusedError` if the command fails.
    """
    command = [sys.executable, "-P", "-m", "coterie", "generate", "--model", str(folder), "--temperature", "0"]
    command += ["--max-tokens", str(_TOKENS), "--", _PROMPT]
    return [_first_output(command) for _ in range(repeats + 1)][1:]


def _first_output(command: list[str]) -> float:
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = process.stdout.read(1)
        seconds = time.perf_counter() - start
        _, errors = process.communicate()
    if process.returncode != 0 or not found:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise RefusedError(f"coterie generate ended with code {process.returncode}: {''.join(last)}")
    return seconds
