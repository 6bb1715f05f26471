"""A report of `coterie bench model` as a JSON object and as tables for people."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coterie.backends.cpu import describe
from coterie.bench import machine
from coterie.bench.model import Report, Settings

Figures = dict[str, Any]
SCHEMA = 1


def record(settings: Settings, report: Report) -> Figures:
    """The machine, versions, the command, and every figure in SI units."""
    return {
        "schema": SCHEMA,
        "command": machine.command(),
        "hardware": machine.hardware(report.threads, describe()),
        "versions": machine.versions(),
        "settings": {**asdict(settings), "peers": list(settings.peers)},
        "model": report.title,
        "read_bandwidth": asdict(report.read_bandwidth) if report.read_bandwidth else None,
        "command_seconds": asdict(report.command_seconds) if report.command_seconds else None,
        "rows": [asdict(row) for row in report.rows],
        "refusals": [{"kernel": name, "reason": reason} for name, reason in report.refusals.items()],
    }


def heading(found: Figures) -> Table:
    """The model, the machine and its read bandwidth, one fact a line."""
    hardware, bandwidth = found["hardware"], found["read_bandwidth"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("model", found["model"])
    grid.add_row("processor", f"{hardware['cpu']}, {hardware['threads']} threads of {hardware['cores']} cores")
    grid.add_row("kernels", hardware["instruction_set"])
    grid.add_row("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    if bandwidth:
        grid.add_row("read bandwidth", f"{_figure(bandwidth, 1e9)} ({_span(bandwidth, 1e9)}) GB/s")
    return grid


def rows(found: Figures) -> Table:
    """A line for each figure, a column for each who ran; medians with the lowest and highest round."""
    settings = found["settings"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for row in found["rows"]:
        table.add_column(row["kernel"], justify="right", no_wrap=True, style="bold" if row["kind"] == "coterie" else "")
    lines: Sequence[tuple[str, str, float, str]] = (
        (f"first token after {settings['prompt']} tokens", "first_token", 1.0, "s"),
        ("decode", "decode_rate", 1.0, "tokens/s"),
        ("  bytes read", "byte_rate", 1e9, "GB/s"),
        ("  of the read bandwidth", "bandwidth_ratio", 1.0, ""),
        (f"prefill of {settings['prefill']} tokens", "prefill_rate", 1.0, "tokens/s"),
        ("coterie is faster: decode", "decode_ratio", 1.0, "×"),
        ("coterie is faster: prefill", "prefill_ratio", 1.0, "×"),
    )
    for title, name, unit, suffix in lines:
        if any(row[name] for row in found["rows"]):
            table.add_row(title, *(_cell(row[name], unit, suffix) for row in found["rows"]))
    table.add_row("peak memory", *(f"{row['peak_memory'] / 2**30:.2f} GiB" for row in found["rows"]))
    if found["command_seconds"]:
        empty = [""] * (len(found["rows"]) - 1)
        table.add_row("first word of a command", _cell(found["command_seconds"], 1.0, "s"), *empty)
    return table


def notes(found: Figures) -> Group:
    """What the figures mean, what must be known to compare, and who did not take part."""
    settings = found["settings"]
    context = f"{settings['prompt']} to {settings['prompt'] + settings['steps']}"
    lines = [
        Text(
            f"{settings['repeats']} rounds; decode: {settings['steps']} steps of one token with {context} tokens in "
            "the cache, each to its logits; bytes: the weights, keys and values that such a step reads. Ratios are "
            "formed within a round."
        )
    ]
    lines += [Text(f"{row['kernel']}: {row['note']}", style="dim") for row in found["rows"]]
    lines += [
        Text(f"{refusal['kernel']} is left out: {refusal['reason']}", style="dim") for refusal in found["refusals"]
    ]
    return Group(*lines)


def _cell(figure: Figures | None, unit: float, suffix: str) -> str:
    if figure is None:
        return ""
    return f"{_figure(figure, unit)} ({_span(figure, unit)}) {suffix}".rstrip()


def _figure(figure: Figures, unit: float) -> str:
    return _digits(figure["median"] / unit)


def _span(figure: Figures, unit: float) -> str:
    return f"{_digits(figure['low'] / unit)} to {_digits(figure['high'] / unit)}"


def _digits(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
