"""A report of the device as a JSON object: the machine, versions, the command, and every figure in SI units."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from coterie.bench import machine
from coterie.bench.cuda import model, workloads
from coterie.bench.cuda.clock import device
from coterie.bench.cuda.device import hardware
from coterie.bench.cuda.ops import Report, Settings
from coterie.bench.measure import Summary

SCHEMA = 1


def heading(limits: Mapping[str, Summary | None]) -> dict[str, Any]:
    """What is known before the first row: the device, versions, the command, and the limits."""
    return {
        "schema": SCHEMA,
        "device": "cuda",
        "command": machine.command(),
        "hardware": hardware(device()),
        "versions": machine.versions(),
        "limits": {name: None if value is None else asdict(value) for name, value in limits.items()},
    }


def record(settings: Settings, report: Report) -> dict[str, Any]:
    """The whole report."""
    return {
        **heading(report.limits),
        "settings": {
            **{name: list(getattr(settings, name)) for name in ("shapes", "formats", "tokens", "peers")},
            "modules": [module.__name__ for module in settings.modules],
            "repeats": settings.repeats,
            "seconds": settings.seconds,
        },
        "rows": [asdict(row) for row in report.rows],
        "refusals": [asdict(refusal) for refusal in report.refusals],
    }


def model_record(settings: workloads.Settings, report: model.Report) -> dict[str, Any]:
    """The report of a whole model."""
    return {
        **heading(report.limits),
        "model": report.title,
        "weight_bytes": report.weight_bytes,
        "token_bytes": report.token_bytes,
        "settings": {
            **{name: getattr(settings, name) for name in ("prompt", "steps", "prefill", "repeats")},
            "batches": list(settings.batches),
        },
        "rows": [asdict(row) for row in report.rows],
    }
