"""A report as a JSON object: the machine, versions, the command, and every figure in SI units."""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from coterie.backends.cpu import describe
from coterie.bench import machine
from coterie.bench.ops import Report, Settings

SCHEMA = 1


def record(settings: Settings, report: Report, external: list[dict[str, Any]]) -> dict[str, Any]:
    """`external`: what a foreign benchmark printed, line by line."""
    return {
        "schema": SCHEMA,
        "command": machine.command(),
        "hardware": machine.hardware(report.threads, describe()),
        "versions": machine.versions(),
        "settings": {**asdict(settings), **{name: list(getattr(settings, name)) for name in _LISTS}},
        "limits": {name: asdict(value) if is_dataclass(value) else None for name, value in report.limits.items()},
        "rows": [asdict(row) for row in report.rows],
        "refusals": [asdict(refusal) for refusal in report.refusals],
        "external": external,
    }


_LISTS = ("shapes", "formats", "tokens", "peers", "modes")


def load(path: Path) -> dict[str, Any]:
    """A record that was written before."""
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found
