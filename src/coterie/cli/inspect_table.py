"""What `coterie inspect` prints: all layers, one layer, one expert."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from coterie.cli.console import visible
from coterie.inspect.labels import label, times

if TYPE_CHECKING:
    from coterie.inspect import LayerReport, Pair, Report, TokenCount

_BAR = 12
_FIGURES = 52
"""Columns that the figures of an expert take; the rest of a line is for its tokens."""
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def overview(report: "Report", console: Console) -> None:
    """One line a layer."""
    console.print(heading(report))
    grid = _grid()
    for title in ("layer", "experts", "busiest", "idlest", "unused", "load", "router", "closest pair"):
        grid.add_column(title, justify="right", no_wrap=True)
    for layer in report.layers:
        grid.add_row(*_overview_row(layer))
    console.print(grid)
    console.print(_notes(report))


def _overview_row(layer: "LayerReport") -> tuple[str, ...]:
    relative, most = layer.relative, np.log2(layer.n_experts)
    busiest, idlest = int(relative.argmax()), int(relative.argmin())
    pair = f"{layer.pairs[0].first}+{layer.pairs[0].second} {times(layer.pairs[0].lift)}" if layer.pairs else ""
    return (
        str(layer.layer),
        f"{layer.source.top_k}/{layer.n_experts}",
        f"{busiest} {times(relative[busiest])}",
        f"{idlest} {times(relative[idlest])}",
        str(len(layer.unused) or ""),
        f"{layer.load_entropy:.2f}/{most:.2f}",
        f"{layer.router_entropy:.2f}",
        pair,
    )


def experts(report: "Report", layer: "LayerReport", top: int, console: Console) -> None:
    """One line an expert, then the pairs furthest above independence."""
    console.print(heading(report, layer))
    grid = _grid()
    for title in ("expert", "tokens", "load", "", "weight"):
        grid.add_column(title, justify="left" if title == "" else "right", no_wrap=True)
    grid.add_column("tokens it takes more than others do", no_wrap=True)
    relative, weight = layer.relative, layer.weights / max(float(layer.weights.sum()), 1e-30)
    for expert in range(layer.n_experts):
        found = layer.tokens.top(expert, "lift", top, report.least)
        bar = _bar(float(relative[expert] / relative.max()))
        share = f"{100 * weight[expert]:.1f} %"
        names = _fitting((_label(report, token) for token in found), console.width - _FIGURES)
        grid.add_row(str(expert), f"{layer.counts[expert]:,}", times(relative[expert]), bar, share, names)
    console.print(grid)
    if layer.pairs:
        console.print(Text("\npairs of experts furthest above what their loads alone would give", style="bold"))
        console.print(_pairs(layer.pairs[:top]))


def one_expert(report: "Report", layer: "LayerReport", expert: int, top: int, console: Console) -> None:
    """One expert: its tokens by count and by lift, and its partners."""
    console.print(heading(report, layer))
    n, of = int(layer.counts[expert]), len(report.trace.tokens)
    facts = f"expert {expert}: {n:,} of {of:,} tokens, {times(layer.relative[expert])} uniform"
    console.print(Text(facts, style="bold"))
    if not n:
        return
    by_lift = f"by lift, of those that occur {report.least} times or more"
    for title, found in (
        ("its tokens by count", layer.tokens.top(expert, "count", top)),
        (by_lift, layer.tokens.top(expert, "lift", top, report.least)),
    ):
        console.print(Text(f"\n{title}", style="bold"))
        console.print(_tokens(report, found))
    console.print(Text("\nits partners, furthest above what the loads alone would give", style="bold"))
    console.print(_pairs(layer.partners(expert, top)))


def heading(report: "Report", layer: "LayerReport | None" = None) -> Text:
    """The model, the text, and how it was cut; and the layer."""
    trace = report.trace
    windows = f" in {trace.n_windows} windows of {trace.window:,}" if trace.n_windows > 1 else ""
    text = Text(f"{visible(trace.model)} · {len(trace.tokens):,} tokens{windows}", style="bold")
    if layer is not None:
        text.append(f"\nlayer {layer.layer}: {layer.source.top_k} of {layer.n_experts} experts for a token, ")
        text.append(f"router entropy {layer.router_entropy:.2f} bits, load entropy {layer.load_entropy:.2f} ")
        text.append(f"of {np.log2(layer.n_experts):.2f} bits, unused experts: {len(layer.unused)}")
    return text


def _notes(report: "Report") -> Text:
    dense = report.trace.n_layers - len(report.layers)
    text = (
        "busiest, idlest: the expert and its load relative to uniform · load, router: entropy in bits, of the load "
        "and of the router's probabilities (mean over tokens) · closest pair: chosen together, over what their loads "
        "would give"
    )
    if dense:
        text += f" · {dense} of {report.trace.n_layers} layers have no experts"
    return Text(text, style="dim")


def _tokens(report: "Report", found: Iterable["TokenCount"]) -> Table:
    grid = _grid()
    for title in ("token", "here", "in all", "lift"):
        grid.add_column(title, justify="left" if title == "token" else "right", no_wrap=True)
    for token in found:
        grid.add_row(_label(report, token), f"{token.n:,}", f"{token.of:,}", times(token.lift))
    return grid


def _pairs(pairs: Iterable["Pair"]) -> Table:
    grid = _grid()
    for title in ("experts", "together", "expected", "lift"):
        grid.add_column(title, justify="right", no_wrap=True)
    for pair in pairs:
        grid.add_row(f"{pair.first} + {pair.second}", f"{pair.together:,}", f"{pair.expected:,.1f}", times(pair.lift))
    return grid


def _label(report: "Report", token: "TokenCount") -> str:
    return label(report.trace.texts[token.token])


def _fitting(names: Iterable[str], width: int) -> str:
    """As many names as there is room for: a table that is too wide would lose its figures."""
    line = ""
    for name in names:
        longer = f"{line}  {name}" if line else name
        if cell_len(longer) > max(width, 24):
            break
        line = longer
    return line


def _bar(share: float) -> str:
    eighths = round(share * _BAR * 8)
    return (_EIGHTHS[8] * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _grid() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
