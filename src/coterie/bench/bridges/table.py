"""A report of `coterie bench bridge` as a JSON object and as tables for people."""

from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coterie.backends.cpu import describe
from coterie.bench import machine
from coterie.bench.bridges.rounds import Report, Settings

SCHEMA = 1


def record(settings: Settings, report: Report) -> dict[str, Any]:
    """The machine, versions, the command, and every figure in SI units."""
    return {
        "schema": SCHEMA,
        "command": machine.command(),
        "hardware": machine.hardware(report.threads, describe()),
        "versions": machine.versions(),
        "settings": asdict(settings),
        "model": report.title,
        "rows": [asdict(row) for row in report.rows],
    }


def heading(found: dict[str, Any]) -> Table:
    """The model and the machine, one fact a line."""
    hardware = found["hardware"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    grid.add_row("model", found["model"])
    grid.add_row("processor", f"{hardware['cpu']}, {hardware['threads']} threads of {hardware['cores']} cores")
    grid.add_row("kernels", hardware["instruction_set"])
    grid.add_row("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    return grid


def rows(found: dict[str, Any]) -> Table:
    """A line for each way; medians with the lowest and highest round."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    titles = ("decode, tokens/s", "faster", "prompt, tokens/s", "faster", "error", "weights", "grown by")
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(
            row["label"],
            _spanned(row["decode_rate"]),
            _spanned(row["faster"], "× "),
            _digits(row["prefill_rate"]),
            f"× {_digits(row['prefill_faster'])}",
            f"{row['error']:.1e}",
            f"{row['weights'] / 2**20:,.0f} MiB",
            "" if row["grown"] is None else f"{row['grown'] / 2**20:,.0f} MiB",
            style="bold" if row["ours"] else "",
        )
    return table


def notes(found: dict[str, Any]) -> Group:
    """What the figures mean."""
    settings = found["settings"]
    lines = (
        f"{settings['repeats']} rounds; decode: {settings['steps']} steps of ours and {settings['peer_steps']} of the "
        f"library as it is, with {settings['prompt']} tokens in the cache. Ratios are formed within a round.",
        f"prompt: {settings['prefill']} tokens, once.",
        "error: relative distance of the logits after two tokens from those of the library itself in f32.",
        "grown by: what the process took on at our first steps, kernels and cache included.",
    )
    return Group(*(Text(line, style="dim") for line in lines))


def _spanned(figure: dict[str, Any], sign: str = "") -> str:
    return f"{sign}{_digits(figure['median'])} ({_digits(figure['low'])} to {_digits(figure['high'])})"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
