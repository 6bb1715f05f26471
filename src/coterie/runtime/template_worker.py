"""The process that renders chat templates: started by `template_process.py`, it imports nothing of Coterie.

A template is a program by a stranger. Jinja's sandbox keeps it from attributes that lead out of its data; what a
sandbox cannot bound, the operating system does: memory by RLIMIT_AS, time by a timer whose signal ends the process,
files by a limit of none. So a template that loops, or asks for gigabytes in one operation, takes this process down and
nothing else.

One JSON object a line. {"template", "memory", "seconds", "characters"} is answered by {}; then each {"variables"} by
{"text"} or {"error", "message"}, where `error` is "refused" (the template raised it), "syntax", "unsafe", "budget" or
"failed".
"""

import datetime
import json
import pprint
import signal
import sys
import textwrap
from contextlib import suppress
from typing import Any

import jinja2
import jinja2.constants
import jinja2.debug
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_LOADED_AHEAD = (pprint, textwrap, jinja2.constants, jinja2.debug)
"""Jinja imports these when it first needs them, and then no file can be opened any more."""


class RefusedError(Exception):
    """A template called `raise_exception`."""


class GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what a model has to learn; rendered, it is its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own interface

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call whose result is the block's own text: what it sets stays inside, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


class PlainNamespace(Namespace):
    """`namespace(...)` without names that begin with an underscore: Python gives those a meaning."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template may not set the attribute {name[:40]!r}")
        super().__setitem__(name, value)


def environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up for chat templates."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], cache_size=0
    )
    made.filters["tojson"] = to_json
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = strftime_now
    made.globals["namespace"] = PlainNamespace
    return made


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Plain JSON; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: Any) -> None:
    """How a template says that it cannot take these messages."""
    raise RefusedError(str(message))


def strftime_now(pattern: str) -> str:
    """The local time of now."""
    return datetime.datetime.now().strftime(pattern)


def limit_process(memory: int) -> None:
    """Bound this process for good; where the system has no such limit (Windows, memory on macOS), the rest holds."""
    try:
        import resource
    except ImportError:
        return
    for name, limit in (("RLIMIT_AS", memory), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0), ("RLIMIT_NOFILE", 3)):
        try:
            resource.setrlimit(getattr(resource, name), (limit, limit))
        except (AttributeError, ValueError, OSError):
            continue


def render(template: jinja2.Template, variables: dict[str, Any], characters: int) -> str:
    """The text, or `MemoryError` once it is longer than so many characters."""
    pieces, length = [], 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > characters:
            raise MemoryError(f"more than {characters:,} characters")
    return "".join(pieces)


def failure(error: BaseException) -> tuple[str, str]:
    """(kind, message) of what went wrong in a template."""
    if isinstance(error, MemoryError | RecursionError | OverflowError):
        return "budget", str(error) or "out of memory"
    if isinstance(error, TemplateSyntaxError):
        return "syntax", f"line {error.lineno}: {error.message}"
    if isinstance(error, SecurityError):
        return "unsafe", str(error)
    return ("refused" if isinstance(error, RefusedError) else "failed"), f"{error}" or type(error).__name__


def warm_up() -> None:
    """Go every way once that reads a file: codecs, the time zone, what an error loads."""
    text = "{{ 'a' | tojson | wordwrap }}{{ strftime_now('%c') }}{{ 'b' | format | pprint }}{{ 1 / 0 }}"
    with suppress(ZeroDivisionError):
        environment().from_string(text).render()


def main() -> None:
    """Answer until standard input ends."""
    warm_up()
    setup = json.loads(sys.stdin.readline())
    limit_process(setup["memory"])
    print("{}", flush=True)
    template: jinja2.Template | None = None
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):
            # Time of this process, not of the clock: a busy machine is not the template's fault. Its signal ends the
            # process wherever it is, inside of C code too.
            signal.setitimer(signal.ITIMER_PROF, setup["seconds"])
        try:
            template = template or environment().from_string(setup["template"])
            answer = json.dumps({"text": render(template, json.loads(line)["variables"], setup["characters"])})
        except Exception as error:
            kind, message = failure(error)
            answer = json.dumps({"error": kind, "message": message[:2000]})
        print(answer, flush=True)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    main()
