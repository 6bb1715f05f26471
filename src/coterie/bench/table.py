"""A record as tables for people."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from coterie.bench.shapes import SHAPES

Figures = dict[str, Any]


def heading(record: Figures) -> Table:
    """The machine and its limits, one fact a line."""
    hardware, limits = record["hardware"], record["limits"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    cache, pages = hardware["last_level_cache"] >> 20, hardware["transparent_huge_pages"]
    grid.add_row("processor", f"{hardware['cpu']}, {hardware['threads']} threads of {hardware['cores']} cores")
    grid.add_row("kernels", hardware["instruction_set"])
    grid.add_row("memory", f"last-level cache {cache} MiB, huge pages: {pages}, load {hardware['load_average']}")
    grid.add_row("versions", ", ".join(f"{name} {version}" for name, version in record["versions"].items()))
    for name, title in (
        ("read_bandwidth", "read bandwidth"),
        ("f32_rate", "f32 multiply-add"),
        ("int8_rate", "int8 dot product"),
    ):
        unit = "GB/s" if name == "read_bandwidth" else "GFLOP/s" if name == "f32_rate" else "GOP/s"
        text = "no such instruction here" if limits[name] is None else f"{_range(limits[name], 1e9, 1)} {unit}"
        if name == "read_bandwidth":
            text += f", best pass {limits['read_pass']['high'] / 1e9:,.1f}"
        grid.add_row(title, text)
    return grid


def rows(record: Figures) -> Table:
    """All rows, grouped by shape, format and tokens; this library's are bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    busy = any(row["busy_ratio"] for row in record["rows"])
    table.add_column("tokens", no_wrap=True)
    table.add_column("kernel", no_wrap=True)
    for name in ("time", "range", "GB/s", "of read", "GFLOP/s", "of f32", "error", *(["busy"] if busy else [])):
        table.add_column(name, justify="right", no_wrap=True)
    case, tokens = None, None
    for row in record["rows"]:
        if (row["shape"], row["format"]) != case:
            if case is not None:
                table.add_section()
            case, tokens = (row["shape"], row["format"]), None
            table.add_row("", Text(" ".join(case), style="bold underline"))
        shown = "" if row["tokens"] == tokens else str(row["tokens"])
        tokens = row["tokens"]
        table.add_row(shown, *_figures(row, busy), style="bold" if row["kind"] == "coterie" else "")
    return table


def width(table: Table) -> int:
    """Columns that a table needs so that nothing of it is cut."""
    return Console(width=400).measure(table).maximum


def _figures(row: Figures, busy: bool) -> list[str]:
    seconds = row["seconds"]
    figures = [
        row["kernel"],
        _time(seconds["median"]),
        _span(seconds),
        f"{row['byte_rate']['median'] / 1e9:.2f}",
        f"{row['bandwidth_ratio']['median']:.2f}",
        f"{row['flop_rate']['median'] / 1e9:.1f}",
        f"{row['f32_ratio']['median']:.2f}",
        "-" if row["error"] is None else f"{row['error']:.1e}",
    ]
    if busy:
        figures.append(f"×{row['busy_ratio']['median']:.2f}" if row["busy_ratio"] else "")
    return figures


def notes(record: Figures) -> Group:
    """What must be known to compare, who did not take part, and what the columns mean."""
    lines = [
        Text(
            "of read: GB/s of touched experts over the read bandwidth beside it; of f32: GFLOP/s over the f32 rate; "
            "both are medians of ratios within a round. error: worst checked row against float64, over its RMS."
        )
    ]
    kernels = {(row["kernel"], row["note"]): None for row in record["rows"] if row["note"]}
    lines += [Text(f"{kernel}: {note}", style="dim") for kernel, note in kernels]
    for refusal in joined(record["refusals"]):
        lines.append(Text(refusal, style="dim"))
    return Group(*lines)


def joined(refusals: Iterable[Figures]) -> list[str]:
    """One line for each who and why, with all the places."""
    places: dict[tuple[str, str], list[str]] = {}
    for refusal in refusals:
        key = (refusal["kernel"], refusal["reason"])
        places.setdefault(key, []).append(f"{refusal['shape']} {refusal['format']}")
    return [f"{kernel} left out of {', '.join(where)}: {why}" for (kernel, why), where in places.items()]


def external(lines: list[Figures]) -> Table:
    """What llama.cpp's own benchmark measured."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, title="llama.cpp test-backend-ops, MUL_MAT_ID")
    for name in ("shape", "type", "m", "k", "tokens", "experts", "time", "GFLOP/s"):
        table.add_column(name, justify="left" if name in ("shape", "type") else "right")
    for line in lines:
        title = SHAPES[line["shape"]].name if line["shape"] else ""
        sizes = [str(line.get(name, "")) for name in ("m", "k", "n")]
        experts = f"{line.get('n_used')} of {line.get('n_mats')}"
        table.add_row(
            title, line["type"], *sizes, experts, _time(line["seconds"]), f"{line['flop_rate'] / 1e9:.1f}"
        )  # fmt: skip
    return table


def switch(found: list[Figures]) -> Table:
    """The two ways of a product of few tokens."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("format")
    for name in ("tokens", "dot", "panel", "panel / dot", "range"):
        table.add_column(name, justify="right")
    table.add_column("faster")
    for row in found:
        ratio = row["ratio"]
        table.add_row(
            row["format"], str(row["tokens"]), _time(row["dot"]["median"]), _time(row["panel"]["median"]),
            f"{ratio['median']:.2f}", f"{ratio['low']:.2f}..{ratio['high']:.2f}",
            "dot" if ratio["median"] > 1 else "panel",
        )  # fmt: skip
    return table


def _time(seconds: float) -> str:
    """Three digits and a unit."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _span(seconds: Figures) -> str:
    """Lowest and highest in the unit of the median."""
    unit = next((factor for factor in (1.0, 1e-3) if seconds["median"] >= factor), 1e-6)
    return f"{seconds['low'] / unit:.3g}..{seconds['high'] / unit:.3g}"


def _range(figure: Figures, unit: float, digits: int) -> str:
    median, low, high = (f"{figure[name] / unit:,.{digits}f}" for name in ("median", "low", "high"))
    return f"{median} ({low}..{high})"
