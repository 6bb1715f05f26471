"""The report as one HTML page that needs nothing else: no network, and no JavaScript for its basics.

Text of models and inputs is escaped wherever it stands, and the page's own policy refuses whatever is not in it: no
request leaves it, and only the one script that it comes with may run.
"""

import base64
import hashlib
from html import escape
from pathlib import Path

import numpy as np

from coterie.inspect import page_layer as layers
from coterie.inspect.colour import STEPS, diverging, octaves, sequential, step
from coterie.inspect.labels import times
from coterie.inspect.page_data import STRIP, embedded
from coterie.inspect.report import LayerReport, Report

_ASSETS = Path(__file__).with_name("assets")


def page(report: Report, layer: int | None = None) -> str:
    """The page, which opens with `layer`, or with the middle one of those with experts."""
    shown = report.layers[len(report.layers) // 2] if layer is None else report.layer(layer)
    script = (_ASSETS / "page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    n = octaves(np.concatenate([layer.log_relative() for layer in report.layers]))
    head = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>Experts of {escape(report.trace.model)}</title>\n"
        f"<style>\n{(_ASSETS / 'page.css').read_text('utf-8')}{_scales()}</style>\n"
    )
    parts = (
        _header(report),
        _heatmap(report, n),
        layers.panel(report, shown),
        layers.strip(report, shown),
        _overview(report),
        f'<script type="application/json" id="data">{embedded(report, shown, n)}</script>\n<script>{script}</script>\n',
    )
    return head + "\n".join(parts) + "</html>\n"


def _scales() -> str:
    """The colour scales as classes d0 ... and properties --s0 ..., for light and for dark paper."""

    def rules(theme: str) -> str:
        steps = "".join(f".d{i}{{fill:{c};background:{c}}}" for i, c in enumerate(diverging(theme)))
        ramp = sequential(theme)
        return f"{steps}:root{{--low:{ramp[0]};--high:{ramp[-1]}}}"

    return f"{rules('light')}\n@media (prefers-color-scheme:dark){{{rules('dark')}}}\n"


def _header(report: Report) -> str:
    trace = report.trace
    kinds = sorted({(layer.source.top_k, layer.n_experts) for layer in report.layers})
    experts = ", ".join(f"{k} of {E}" for k, E in kinds)
    cut = "" if trace.n_windows == 1 else f" in {trace.n_windows} windows of {trace.window:,}, each read on its own"
    return (
        f"<header><h1>Experts of {escape(trace.model)}</h1>"
        f"<p>{len(trace.tokens):,} tokens{cut}; {experts} experts for a token, in {len(report.layers)} of "
        f'{trace.n_layers} layers. <span class="dim">Model {trace.fingerprint[:12]}</span></p></header>'
    )


def _heatmap(report: Report, n_octaves: int) -> str:
    """Layers by experts; each cell is a rectangle with a title, so that hovering works without the script."""
    E, n_layers = max(layer.n_experts for layer in report.layers), report.trace.n_layers
    width, height = float(np.clip(1120 / E, 8, 44)), float(np.clip(560 / n_layers, 11, 26))
    gap = 0.0 if width < 12 else 1.0
    left, cells = 34, []
    by_number = {layer.layer: layer for layer in report.layers}
    for number in range(n_layers):
        y = number * height
        if number % (1 if height >= 14 else 2) == 0:
            cells.append(f'<text x="{left - 6}" y="{y + height / 2 + 3.5:g}" class="end">{number}</text>')
        layer = by_number.get(number)
        if layer is None:
            cells.append(f'<text x="{left + 4}" y="{y + height / 2 + 3.5:g}" class="dim">no experts</text>')
            continue
        size = f'width="{width - gap:.4g}" height="{height - gap:.4g}"'
        cells.append(f'<g data-layer="{number}" transform="translate({left} {y:g})">')
        cells += [_cell(layer, expert, expert * width, size, n_octaves) for expert in range(layer.n_experts)]
        cells.append("</g>")
    every = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) if n * width >= 26)
    base = n_layers * height + 15
    cells += [
        f'<text x="{left + (e + 0.5) * width:.5g}" y="{base:g}" class="mid">{e}</text>' for e in range(0, E, every)
    ]
    box = f"0 0 {left + E * width + 2:g} {base + 6:g}"
    svg = f'<svg id="heat" viewBox="{box}" style="max-width:{left + E * width + 2:g}px" role="img" '
    svg += f'aria-label="Load of every expert in every layer, relative to uniform">{_HATCH}{"".join(cells)}</svg>'
    return (
        "<section><h2>Load</h2><p>Each row is a layer, each column an expert; the colour is the number of its tokens "
        f'over the uniform number.</p>{_legend(n_octaves)}<div class="wide">{svg}</div></section>'
    )


_HATCH = (
    '<defs><pattern id="none" width="4" height="4" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect class="paper" width="4" height="4"/><rect class="ink" width="1.3" height="4"/></pattern></defs>'
)


def _cell(layer: LayerReport, expert: int, x: float, size: str, n_octaves: int) -> str:
    n, relative = int(layer.counts[expert]), float(layer.relative[expert])
    kind = f'class="d{step(float(np.log2(relative)), n_octaves)}"' if n else 'class="dn"'
    title = f"layer {layer.layer}, expert {expert}: {n:,} tokens, {relative:.2f}×"
    return f'<rect x="{x:.5g}" {size} {kind}><title>{title}</title></rect>'


def _legend(n_octaves: int) -> str:
    bar = "".join(f'<i class="d{i}"></i>' for i in range(STEPS))
    marks = "".join(f"<b>{f'1/{2**-o}' if o < 0 else 2**o}</b>" for o in range(-n_octaves, n_octaves + 1))
    return (
        f'<div class="legend"><div><div class="bar">{bar}</div><div class="marks">{marks}</div></div>'
        "<span>× uniform; beyond the ends the colour stays</span>"
        '<svg width="14" height="14"><rect width="14" height="14" class="dn"/></svg><span>no token</span></div>'
    )


def _overview(report: Report) -> str:
    """A line for every layer; the whole of it without the script."""
    rows = []
    for layer in report.layers:
        relative = layer.relative
        busy, idle = int(relative.argmax()), int(relative.argmin())
        pair = layer.pairs[0] if layer.pairs else None
        closest = f"{pair.first} + {pair.second}, {times(pair.lift)}" if pair else ""
        rows.append(
            f"<tr><th>{layer.layer}<td>{layer.source.top_k} of {layer.n_experts}"
            f"<td>{busy}, {times(relative[busy])}<td>{idle}, {times(relative[idle])}"
            f"<td>{len(layer.unused)}<td>{layer.load_entropy:.2f} of {np.log2(layer.n_experts):.2f}"
            f"<td>{layer.router_entropy:.2f}<td>{closest}"
        )
    return (
        "<section><h2>All layers</h2><p>Load relative to uniform; entropies in bits: of the load, and of the router's "
        "probabilities (mean over tokens). The closest pair is chosen together more often than the loads of the two "
        'would give, by so many times.</p><div class="wide"><table><thead><tr><th>layer<th>experts<th>busiest'
        "<th>idlest<th>unused<th>load entropy<th>router entropy<th>closest pair</thead><tbody>"
        f'{"".join(rows)}</tbody></table></div><p class="dim">The strip shows the first {STRIP:,} tokens at most.</p>'
        "</section>"
    )
