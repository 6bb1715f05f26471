"""The plots as PNG: load by layer and expert, the tokens of a layer along the text, pairs of experts.

matplotlib is needed for these and for nothing else, and is asked for first.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from coterie.errors import BackendUnavailableError
from coterie.inspect.colour import diverging, octaves, sequential
from coterie.inspect.labels import label
from coterie.inspect.report import ENOUGH, LayerReport, Report, shares

Target = Path | IO[bytes]
"""Where a PNG goes."""
_INK, _FAINT, _NONE, _HATCH = "#22252b", "#8b929d", "#3a3f47", "#d5d9df"
MAX_STRIP = 96
"""Tokens on a strip: more labels than that cannot be read."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
    "hatch.linewidth": 0.5,
}


def check() -> None:
    """`BackendUnavailableError` where matplotlib is not installed; call it before a long run whose end is a plot."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise BackendUnavailableError(
            f"plots as PNG need matplotlib ({cause}): pip install 'coterie[plots]'; the page (--html) needs nothing",
            code="matplotlib",
        ) from cause


def heatmap(report: Report, target: Target) -> None:
    """Every layer's experts, coloured by load relative to uniform on a logarithmic scale; dense layers stay blank."""
    E, n_layers = max(layer.n_experts for layer in report.layers), report.trace.n_layers
    grid = np.full((n_layers, E), np.nan)
    for layer in report.layers:
        grid[layer.layer, : layer.n_experts] = layer.log_relative()
    size = float(np.clip(2.6 + E * 0.075, 7.0, 16.0)), float(np.clip(1.7 + n_layers * 0.14, 3.0, 14.0))
    with _drawing(*size, target) as (figure, axes):
        _ratios(figure, axes, grid, "auto", "tokens of the expert / uniform")
        _dense_rows(axes, report, E)
        axes.set(xlabel="expert", ylabel="layer")
        axes.xaxis.set_major_locator(_whole(E))
        axes.yaxis.set_major_locator(_whole(n_layers))
        uniform = [layer.source.top_k * len(report.trace.tokens) / layer.n_experts for layer in report.layers]
        about = " to ".join(f"{n:,.1f}".removesuffix(".0") for n in sorted({min(uniform), max(uniform)}))
        _title(axes, "Load of experts, relative to uniform", f"{_about(report)}; uniform is {about} tokens an expert")
        if any(layer.unused for layer in report.layers):
            _legend(axes, {"no token": _NONE})


def strip(report: Report, layer: LayerReport, target: Target, *, begin: int = 0, length: int = 64) -> None:
    """Tokens along the text, one column each: which experts take it, and with what share of its routing weight."""
    length = min(length, MAX_STRIP, len(report.trace.tokens) - begin)
    part = slice(begin, begin + length)
    share = shares(layer.source.weights[part])
    grid = np.full((layer.n_experts, length), np.nan)
    np.put_along_axis(grid, layer.source.ids[part].T.astype(np.int64), share.T, axis=0)
    size = max(6.0, 1.9 + 0.155 * length), float(np.clip(1.9 + 0.15 * layer.n_experts, 3.2, 11.0))
    with _drawing(*size, target) as (figure, axes):
        image = axes.imshow(grid, aspect="auto", cmap=_map(sequential()), vmin=0, vmax=float(share.max()), **_PLAIN)
        axes.set_xticks(range(length), [_drawn(report.trace.text_of(begin + t)) for t in range(length)], rotation=90)
        axes.tick_params(axis="x", labelsize=7.5, length=0)
        axes.yaxis.set_major_locator(_whole(layer.n_experts))
        axes.set_ylabel("expert")
        axes.set_xticks(np.arange(length + 1) - 0.5, minor=True)
        axes.grid(axis="x", which="minor", color="#e6e8ec", linewidth=0.5)
        axes.tick_params(which="minor", length=0)
        tokens = f"tokens {begin} to {begin + length - 1} of {len(report.trace.tokens):,}"
        _title(axes, f"Who takes which token: layer {layer.layer}", f"{report.trace.model}; {tokens}")
        bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.03, aspect=30)
        bar.set_label("share of the token's routing weight")
        bar.outline.set_visible(False)


def coactivation(report: Report, layer: LayerReport, target: Target) -> None:
    """Pairs of experts: tokens that chose both over what their loads alone would give, on a logarithmic scale.

    Pairs of which the loads promise fewer than `ENOUGH` tokens stay blank: with so few, chance paints the picture.
    """
    lift = layer.log_lift()
    side = float(np.clip(3.2 + 0.09 * layer.n_experts, 5.0, 10.5))
    with _drawing(side + 0.9, side, target) as (figure, axes):
        _ratios(figure, axes, lift, "equal", "tokens that chose both / expected from the loads")
        axes.set(xlabel="expert", ylabel="expert")
        axes.xaxis.set_major_locator(_whole(layer.n_experts))
        axes.yaxis.set_major_locator(_whole(layer.n_experts))
        _title(axes, f"Experts chosen together: layer {layer.layer}", _about(report))
        off_diagonal = ~np.eye(layer.n_experts, dtype=bool)
        entries = {"never together": _NONE} if np.isneginf(lift).any() else {}
        if np.isnan(lift[off_diagonal]).any():
            entries[f"under {ENOUGH} expected"] = _HATCH
        if entries:
            _legend(axes, entries)


_PLAIN: dict[str, Any] = {"interpolation": "nearest"}


@contextmanager
def _drawing(width: float, height: float, target: Target) -> Iterator[tuple[Any, Any]]:
    """A figure of so many inches with one pair of axes, written to `target` in the end; no global state is touched."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots()
        figure.savefig(target, format="png", dpi=130, metadata={"Software": None})


def _ratios(figure: Any, axes: Any, grid: np.ndarray, aspect: str, text: str) -> None:
    """log2 ratios in the diverging scale; -infinity (none at all) has a colour of its own, NaN stays blank."""
    from matplotlib.colors import ListedColormap

    n = octaves(grid)
    none = np.where(np.isneginf(grid), 0.0, np.nan)
    axes.patch.set(hatch="////", edgecolor=_HATCH)  # seen where nothing is drawn
    image = axes.imshow(grid, cmap=_map(diverging()), vmin=-n, vmax=n, aspect=aspect, **_PLAIN)
    axes.imshow(none, cmap=ListedColormap([_NONE]), aspect=aspect, **_PLAIN)
    bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.03, aspect=30, extend="both")
    bar.set_ticks(range(-n, n + 1), labels=[f"1/{2**-o}" if o < 0 else str(2**o) for o in range(-n, n + 1)])
    bar.set_label(text)
    bar.outline.set_linewidth(0.4)


def _map(colours: list[str]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("coterie", colours, N=256)


def _whole(n: int) -> Any:
    """Ticks at whole numbers; all of them where there are few."""
    from matplotlib.ticker import FixedLocator, MaxNLocator

    return FixedLocator(range(n)) if n <= 16 else MaxNLocator(17, integer=True, steps=[1, 2, 4, 8, 10])


def _dense_rows(axes: Any, report: Report, E: int) -> None:
    with_experts = {layer.layer for layer in report.layers}
    for number in set(range(report.trace.n_layers)) - with_experts:
        axes.text((E - 1) / 2, number, "no experts", ha="center", va="center", color=_FAINT, fontsize=6.5)


def _legend(axes: Any, entries: dict[str, str]) -> None:
    """Text -> colour, above the plot on the right."""
    from matplotlib.patches import Patch

    axes.legend(
        handles=[
            Patch(facecolor="white", edgecolor=_HATCH, hatch="//////", label=text)
            if colour == _HATCH
            else Patch(facecolor=colour, label=text)
            for text, colour in entries.items()
        ],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.0,
        handleheight=1.0,
        ncols=2,
        columnspacing=1.2,
    )


def _title(axes: Any, title: str, below: str) -> None:
    axes.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold")
    axes.annotate(
        _drawn(below, 160), (0, 1), xycoords="axes fraction", xytext=(0, 5), textcoords="offset points", color=_INK
    )


def _about(report: Report) -> str:
    return f"{report.trace.model}; {len(report.trace.tokens):,} tokens"


def _drawn(text: str, limit: int = 14) -> str:
    """`text` with what the font lacks spelled out, instead of boxes and a warning for each."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties(family="DejaVu Sans")))
    shown = label(text, limit) if limit < 100 else text
    return "".join(c if known.get_char_index(ord(c)) else c.encode("unicode_escape").decode("ascii") for c in shown)
