"""The near side of `template_worker.py`: starts the process, asks it, and ends it when a template runs away."""

import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.errors import CapacityError, ConfigError, CoterieError, RequestError, UnsupportedError

SECONDS = 5.0
"""Time of a processor for one rendering, its compilation included."""
MEMORY = 512 * 2**20
"""Bytes of address space of the whole process, of which Python and Jinja take some 40 MB."""
CHARACTERS = 16_000_000
"""Length of a rendered text, and of messages: more than any context holds."""
CLOCK_SECONDS = 120.0
"""A process that answers nothing for so long is ended, whatever it does."""

_WORKER = Path(__file__).with_name("template_worker.py")
_KEPT_VARIABLES = ("PATH", "TZ", "LANG", "LC_ALL", "LC_TIME", "SYSTEMROOT", "LD_LIBRARY_PATH", "PYTHONHOME")


class TemplateProcess:
    """Renders one template, from several threads in turn. The process starts when it is first needed."""

    def __init__(self, template: str, where: str) -> None:
        """`where` names the template's file in errors."""
        self._template = template
        self._where = where
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that the template makes of JSON values.

        `RequestError` if the template refuses them or fails on them, `ConfigError` for one that is no template or
        reaches for what it may not have, `CapacityError` for one that takes more than its budget.
        """
        line = json.dumps({"variables": variables}).encode() + b"\n"
        with self._lock:
            try:
                answer = self._ask(line)
            except BaseException:
                # Whatever was on its way would be taken for the answer to the next question.
                self._drop()
                raise
        if "error" not in answer:
            return str(answer["text"])
        raise self._error(answer["error"], answer["message"])

    def _ask(self, line: bytes) -> dict[str, Any]:
        process = self._process
        if process is None or self._owner != os.getpid():
            process = self._start()
        answer = _exchange(process, line)
        if not answer:
            raise self._error("budget", f"its process ended with {process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        if found.get("error") == "budget":
            self._drop()
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        # -P: the folder of the script is no place to import from. A session of its own: Ctrl-C is not for it.
        command = [sys.executable, "-P", "-X", "utf8", str(_WORKER)]
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        setup = {"template": self._template, "memory": MEMORY, "seconds": SECONDS, "characters": CHARACTERS}
        try:
            process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=nowhere, env=environment, start_new_session=True
            )
        except OSError as error:
            raise _no_process(str(error)) from error
        self._process, self._owner = process, os.getpid()
        weakref.finalize(self, _end, process, self._owner)
        if not _exchange(process, json.dumps(setup).encode() + b"\n"):
            raise _no_process(f"it ended with {process.wait()}")
        return process

    def _drop(self) -> None:
        if self._process is not None:
            _end(self._process, self._owner)
        self._process = None

    def _error(self, kind: str, message: str) -> CoterieError:
        what = f"{self._where}: the chat template"
        if kind == "refused":
            return RequestError(f"{what} refuses these messages: {message}", code="template_refused")
        if kind == "failed":
            return RequestError(
                f"{what} fails on these messages ({message}), expected messages as the model's card shows them",
                code="template_failed",
            )
        if kind == "budget":
            return CapacityError(
                f"{what} takes too much ({message}), expected less than {SECONDS:g} s of processor time, "
                f"{MEMORY >> 20} MiB and {CHARACTERS:,} characters; do not trust it, or pass fewer messages",
                code="template_budget",
            )
        reason = "is no template" if kind == "syntax" else "reaches out of its sandbox"
        return ConfigError(
            f"{what} {reason} ({message}); fetch the file again, or use another one", code=f"template_{kind}"
        )


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """The line that answers `line`; empty if the process ended instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    watchdog = threading.Timer(CLOCK_SECONDS, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        answer = process.stdout.readline()
    except BrokenPipeError:
        return b""
    finally:
        watchdog.cancel()
    return answer if answer.endswith(b"\n") else b""


def _no_process(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"chat templates are rendered in a process of their own, and {sys.executable or 'an unknown Python'} does not "
        f"start as one ({reason}), expected a Python with jinja2; render the messages elsewhere and pass their ids",
        code="template_process",
    )


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the process, unless this is a copy of the program that started it."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue
