"""Every kernel against the roofline of the machine it ran on: arithmetic intensity and rate, both logarithmic.

A layer that touches B bytes of weights and makes F multiplications and additions has the intensity F / B; memory lets
it run at no more than intensity times read bandwidth, arithmetic at no more than the peak rate. The roof drawn is that
of the same run: medians, with the range of the bandwidth as a band.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from coterie.bench.shapes import SHAPES

_INK, _FAINT, _PAPER = "#22252b", "#9aa1ac", "#ffffff"
_OURS = ("#d1495b", "#e07b39", "#8f2d56")
_PEERS = ("#2e6f95", "#5b8c5a", "#8d6a9f", "#b08900", "#4f5d75", "#3a9188")
_MARKERS = {"4bit": "o", "8bit": "s", "mxfp4": "D", "bf16": "^"}
_TITLES = {"4bit": "4 bits, group 64", "8bit": "8 bits, group 64", "mxfp4": "mxfp4", "bf16": "bf16"}
_PEAKS = {"bf16": "bf16_rate", "int8": "int8_rate", "f32": "f32_rate"}
_SOLID = ("f32", "bf16")
"""Peaks of the arithmetic that a layer is written in; the others are dashed."""

Figures = dict[str, Any]


def write(record: Figures, path: Path) -> None:
    """Draw a record's rows, a panel for each shape, and write a PNG."""
    shapes = list(dict.fromkeys(row["shape"] for row in record["rows"]))
    columns = 2 if len(shapes) > 1 else 1
    lines = -(-len(shapes) // columns)
    style = {"font.family": "DejaVu Sans", "font.size": 9, "text.color": _INK, "axes.edgecolor": _FAINT}
    with plt.rc_context(style):
        size = (6.4 * columns + 0.4, 4.6 * lines + 1.7)
        figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
        colours = _colours(record["rows"])
        # The places of the panels are settled first: the text along the slope needs its angle on paper.
        _furniture(figure, record, colours, size)
        limits = _extent(record)
        for place, axis in enumerate(axes.flat):
            if place >= len(shapes):
                axis.set_visible(False)
                continue
            rows = [row for row in record["rows"] if row["shape"] == shapes[place]]
            _panel(axis, record, rows, colours, limits)
            if place % columns == columns - 1 or place == len(shapes) - 1:
                _name_peaks(axis, record["limits"], limits[1])
            if place >= len(shapes) - columns:
                axis.set_xlabel("arithmetic intensity   [FLOP / byte of touched experts]", color=_INK)
                axis.tick_params(labelbottom=True)
            if place % columns == 0:
                axis.set_ylabel(f"{_unit(record['limits'])[1]}FLOP/s", color=_INK)
        figure.savefig(path, dpi=150, facecolor=_PAPER)
        plt.close(figure)


def _colours(rows: list[Figures]) -> dict[str, str]:
    ours = dict.fromkeys(row["kernel"] for row in rows if row["kind"] == "coterie")
    peers = dict.fromkeys(row["kernel"] for row in rows if row["kind"] != "coterie")
    return {
        **{name: _OURS[place % len(_OURS)] for place, name in enumerate(ours)},
        **{name: _PEERS[place % len(_PEERS)] for place, name in enumerate(peers)},
    }


def _intensity(row: Figures) -> float:
    return float(row["flops"] / row["touched_bytes"])


def _extent(record: Figures) -> tuple[float, float, float, float]:
    """Of both axes, with room on every side; rates in the unit of `_unit`."""
    across = [_intensity(row) for row in record["rows"]]
    unit = _unit(record["limits"])[0]
    rates = [row["flop_rate"]["median"] / unit for row in record["rows"]]
    return min(across) / 1.7, max(across) * 1.7, min(rates) / 3, max(*rates, *_peaks(record["limits"]).values()) * 1.5


def _panel(axis: Any, record: Figures, rows: list[Figures], colours: dict[str, str], limits: tuple[float, ...]) -> None:
    left, right, bottom, top = limits
    axis.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    _roof(axis, record["limits"], left, right, bottom)
    unit = _unit(record["limits"])[0]
    for row in sorted(rows, key=lambda row: row["kind"] == "coterie"):
        rate, own = row["flop_rate"], row["kind"] == "coterie"
        x, y = _intensity(row), rate["median"] / unit
        spread = [[y - rate["low"] / unit], [rate["high"] / unit - y]]
        colour = colours[row["kernel"]]
        axis.errorbar(x, y, spread, color=colour, elinewidth=0.8, alpha=0.45, zorder=3)
        axis.plot(x, y, **_mark(row["format"], colour), markersize=8.5 if own else 6, zorder=5 if own else 4)
    _token_marks(axis, rows, bottom)
    shape = SHAPES.get(rows[0]["shape"])
    axis.set_title(shape.title if shape else rows[0]["shape"], loc="left", fontweight="bold", fontsize=11, color=_INK)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    # Where a panel spans less than two decades, 2 and 5 are named between the powers of ten.
    axis.xaxis.set_minor_formatter(
        lambda value, _: f"{value:g}" if right < 100 * left and f"{value:e}"[0] in "25" else ""
    )
    axis.yaxis.set_minor_formatter(lambda _value, _: "")
    axis.grid(True, which="major", color="#e8eaee", linewidth=0.8, zorder=0)
    axis.tick_params(which="both", color=_FAINT, labelcolor=_INK)
    axis.spines[["top", "right"]].set_visible(False)


def _mark(format_name: str, colour: str) -> dict[str, Any]:
    """Formats differ in form; mxfp4 is hollow: next to 4 bits, one would hide the other."""
    shape = {"marker": _MARKERS[format_name], "linestyle": "", "color": colour}
    if format_name == "mxfp4":
        return {**shape, "markerfacecolor": "none", "markeredgewidth": 1.5}
    return {**shape, "markeredgecolor": _PAPER, "markeredgewidth": 0.9}


def _roof(axis: Any, limits: Figures, left: float, right: float, bottom: float) -> None:
    """The slope of memory, with its range as a band, up to the highest peak; a line for each peak."""
    unit, letter = _unit(limits)
    bandwidth = {name: limits["read_bandwidth"][name] / unit for name in ("median", "low", "high")}
    levels = _peaks(limits)
    x, highest = np.geomspace(left, right, 400), max(levels.values())
    low, high = (np.minimum(bandwidth[name] * x, highest) for name in ("low", "high"))
    axis.fill_between(x, low, high, color=_FAINT, alpha=0.18, linewidth=0, zorder=1)
    ridge = highest / bandwidth["median"]
    axis.plot([left, ridge], [bandwidth["median"] * left, highest], color=_INK, linewidth=1.6, zorder=2)
    for name, level in levels.items():
        dashes = "-" if name in _SOLID else (0, (5, 2))
        begin = max(left, level / bandwidth["median"])
        axis.plot([begin, right], [level, level], color=_INK, linewidth=1.3, linestyle=dashes, zorder=2)
    _name_slope(axis, bandwidth, f"{letter}B/s", max(left, bottom / bandwidth["median"]), min(ridge, right))


def _peaks(limits: Figures) -> dict[str, float]:
    """The peak rates by name, as far as they were measured, in the unit of `_unit`."""
    unit = _unit(limits)[0]
    return {name: limits[key]["median"] / unit for name, key in _PEAKS.items() if limits.get(key)}


def _unit(limits: Figures) -> tuple[float, str]:
    """How many operations, or bytes, a second are one, and its letter: tera for GPUs, giga for processors."""
    return (1e12, "T") if "bf16_rate" in limits else (1e9, "G")


def _name_slope(axis: Any, bandwidth: dict[str, float], unit: str, foot: float, ridge: float) -> None:
    """The bandwidth in words, along the upper edge of its band."""
    middle = float(np.sqrt(foot * ridge))
    places = axis.transData.transform([(middle, middle), (2 * middle, 2 * middle)])
    angle = float(np.degrees(np.arctan2(*(places[1] - places[0])[::-1])))
    axis.annotate(
        f"reads {bandwidth['median']:.3g} {unit}", (middle, bandwidth["high"] * middle), xytext=(-4, 4),
        textcoords="offset points", rotation=angle, rotation_mode="anchor", ha="center", va="bottom", color=_INK,
        fontsize=8, zorder=6,
    )  # fmt: skip


def _name_peaks(axis: Any, limits: Figures, right: float) -> None:
    """The peaks in words, outside of the right edge."""
    for name, level in _peaks(limits).items():
        axis.annotate(
            f"{name}\n{level:,.0f}", (right, level), xytext=(5, 0), textcoords="offset points", va="center",
            color=_INK, fontsize=8, annotation_clip=False,
        )  # fmt: skip


def _token_marks(axis: Any, rows: list[Figures], bottom: float) -> None:
    """The number of tokens below its cluster of points, formats side by side."""
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        places = [_intensity(row) for row in rows if row["tokens"] == tokens]
        middle = float(np.sqrt(min(places) * max(places)))
        axis.plot([min(places), max(places)], [bottom * 1.22] * 2, color=_FAINT, linewidth=2, solid_capstyle="round")
        text = "1 token" if tokens == 1 else f"{tokens} tokens"
        axis.annotate(
            text, (middle, bottom * 1.22), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=7.5,
            color="#5d646f",
        )  # fmt: skip


def _furniture(figure: Any, record: Figures, colours: dict[str, str], size: tuple[float, float]) -> None:
    """Title, machine and legend around the panels; distances in inches, so that every size looks the same."""
    height = size[1]
    figure.text(
        0.35 / size[0], 1 - 0.36 / height, "Experts layers against the roofline", fontsize=15, fontweight="bold"
    )
    machine = f"{_machine(record['hardware'])} · medians, bars from lowest to highest round"
    figure.text(0.35 / size[0], 1 - 0.62 / height, machine, fontsize=9, color="#5d646f")
    kernels = [
        Line2D([], [], marker="o", linestyle="", color=colour, markersize=7, label=name)
        for name, colour in colours.items()
    ]
    shown = dict.fromkeys(row["format"] for row in record["rows"])
    formats = [Line2D([], [], **_mark(name, "#5d646f"), markersize=7, label=_TITLES[name]) for name in shown]
    for handles, place in ((kernels, 0.36), (formats, 0.1)):
        figure.legend(
            handles=handles, loc="lower center", bbox_to_anchor=(0.5, place / height), ncols=len(handles),
            frameon=False, fontsize=8.5, handletextpad=0.2, columnspacing=1.6, borderpad=0,
        )  # fmt: skip
    figure.subplots_adjust(
        left=0.75 / size[0],
        right=1 - 0.65 / size[0],
        top=1 - 1.2 / height,
        bottom=1.2 / height,
        hspace=0.17,
        wspace=0.06,
    )


def _machine(hardware: Figures) -> str:
    if "gpu" in hardware:
        return str(hardware["gpu"])
    return f"{hardware['cpu']} · {hardware['threads']} threads · {hardware['instruction_set'].partition(':')[0]}"
