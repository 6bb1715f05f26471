"""A record of the device for people: lines that can be printed as they come, and tables in Markdown."""

from collections.abc import Iterable
from typing import Any

from coterie.bench.shapes import SHAPES
from coterie.bench.table import joined

Figures = dict[str, Any]

_LIMITS = (
    ("read_bandwidth", "reads", 1e12, "TB/s"),
    ("copy_bandwidth", "copies", 1e12, "TB/s"),
    ("bf16_rate", "bf16 products", 1e12, "TFLOP/s"),
    ("empty_kernel", "an empty kernel", 1e-6, "µs"),
)
_COLUMNS = ("tokens", "kernel", "µs", "range", "floor", "of it", "TB/s", "TFLOP/s", "error", "overall")
_LAYOUT = "{:>6}  {:<23}{:>9} {:>18}{:>9}{:>7}{:>7}{:>9}{:>9}{:>9}"

MEANING = (
    "floor: the bytes of the touched experts over the read bandwidth, or operations over the bf16 rate, whichever is "
    "longer; of it: floor over time. error: the worst of up to 8 rows against float64, over its RMS; overall: that of "
    "all of them. *: launched one by one, not as a graph."
)


def heading(record: Figures) -> list[str]:
    """The device and its limits, one fact a line."""
    hardware, versions = record["hardware"], record["versions"]
    cache = hardware["second_level_cache"] / 2**20
    sizes = f"second-level cache {cache:,.0f} MiB"
    if "memory" in hardware:
        sizes = f"{hardware['memory'] / 2**30:,.1f} GiB, {hardware['multiprocessors']} multiprocessors, {sizes}"
    return [
        f"{hardware['gpu']}: {sizes}",
        ", ".join(f"{name} {version}" for name, version in versions.items()),
        "; ".join(limits(record)),
    ]


def limits(record: Figures) -> list[str]:
    """Each limit with its range."""
    return [
        f"{title} {' '.join((_digits(found['median'] / unit), _span(found, unit), name))}"
        for key, title, unit, name in _LIMITS
        if (found := record["limits"][key])
    ]


def columns() -> str:
    """What stands over the lines."""
    return _LAYOUT.format(*_COLUMNS)


def title(row: Figures) -> str:
    """What stands over the rows of a shape and format."""
    return f"{row['shape']} {row['format']}"


def line(row: Figures) -> str:
    """A row."""
    seconds = row["seconds"]
    return _LAYOUT.format(
        row["tokens"],
        row["kernel"],
        _microseconds(seconds["median"]) + ("" if row["graph"] else "*"),
        f"{_microseconds(seconds['low'])}..{_microseconds(seconds['high'])}",
        _microseconds(row["floor"]),
        f"{row['floor_ratio']['median']:.2f}",
        f"{row['byte_rate']['median'] / 1e12:.2f}",
        f"{row['flop_rate']['median'] / 1e12:.1f}",
        f"{row['error']:.1e}",
        f"{row['error_overall']:.1e}",
    )


def notes(record: Figures) -> list[str]:
    """What the columns mean, what must be known to compare, and who did not take part."""
    kernels = {(row["kernel"], row["note"]): None for row in record["rows"] if row["note"]}
    return [MEANING, *(f"{kernel}: {note}" for kernel, note in kernels), *joined(record["refusals"])]


def markdown(record: Figures) -> str:
    """A table for each format, a line for each kernel of a shape: microseconds, and the share that the floor is."""
    rows = record["rows"]
    tokens = sorted({row["tokens"] for row in rows})
    parts = [f"{record['hardware']['gpu']}: {'; '.join(limits(record))}."]
    for name in _unique(row["format"] for row in rows):
        head = [name, "", *(f"{count:,} token{'' if count == 1 else 's'}" for count in tokens), "largest error"]
        lines = [_cells(head), _cells(["---"] * 2 + ["---:"] * (len(tokens) + 1))]
        of_format = [row for row in rows if row["format"] == name]
        for shape in _unique(row["shape"] for row in of_format):
            lines += _of_shape([row for row in of_format if row["shape"] == shape], tokens)
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _of_shape(rows: list[Figures], tokens: list[int]) -> list[str]:
    """The floor of a shape, and a line for each kernel."""
    shape = SHAPES.get(rows[0]["shape"])
    floors = {row["tokens"]: _microseconds(row["floor"]) for row in rows}
    lines = [_cells([shape.title if shape else rows[0]["shape"], "floor", *(floors.get(n, "") for n in tokens), ""])]
    for kernel in _unique(row["kernel"] for row in rows):
        of_kernel = {row["tokens"]: row for row in rows if row["kernel"] == kernel}
        largest = max(row["error"] for row in of_kernel.values())
        cells = [_cell(of_kernel[n]) if n in of_kernel else "" for n in tokens]
        lines.append(_cells(["", kernel, *cells, f"{largest:.1e}"]))
    return lines


def _cell(row: Figures) -> str:
    """Ours are bold; a star is for those that were launched one by one."""
    text = _microseconds(row["seconds"]["median"])
    text = f"**{text}**" if row["kind"] == "coterie" else text
    return f"{text}{'' if row['graph'] else chr(92) + '*'} ({row['floor_ratio']['median']:.2f})"


def _cells(texts: Iterable[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def _span(figure: Figures, unit: float) -> str:
    return f"({_digits(figure['low'] / unit)}..{_digits(figure['high'] / unit)})"


def _digits(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
