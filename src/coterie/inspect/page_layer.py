"""The part of the page about one layer, as it stands before the script runs, or without it."""

from html import escape

from coterie.inspect.labels import flow, label, times
from coterie.inspect.page_data import STRIP, TOP
from coterie.inspect.report import ENOUGH, LayerReport, Report, shares

_BARS = 150
"""Height of the bars, in pixels."""


def panel(report: Report, layer: LayerReport) -> str:
    """Loads, pairs and tokens of the layer's experts."""
    options = "".join(
        f'<option value="{place}"{" selected" if each is layer else ""}>{each.layer}</option>'
        for place, each in enumerate(report.layers)
    )
    return (
        f'<section id="layer"><h2>Layer <span id="number">{layer.layer}</span></h2>'
        f'<p class="controls script"><label>layer <select id="pick-layer">{options}</select></label> '
        '<label>expert <select id="pick-expert"><option value="">all</option></select></label> '
        '<span class="dim">or click a cell, a bar or a row</span></p>'
        f'<noscript><p class="dim">Without JavaScript the page shows layer {layer.layer} only.</p></noscript>'
        f"<h3>Load of its experts</h3>{_bars(layer)}"
        '<div class="columns"><div class="script"><h3>Chosen together</h3><canvas id="pairs"></canvas>'
        '<p class="dim">Expert by expert, from the top left. Tokens that chose both, over what their loads alone '
        f"would give; colours as above, hatched where fewer than {ENOUGH} are expected.</p></div>"
        f"<div><h3>Closest pairs</h3>{_pairs(layer)}</div></div>"
        f'<h3>Tokens that each expert takes</h3><p class="dim">By lift: how much more often than of all tokens; tokens '
        f"that occur {report.least} times or more.</p>{_experts(report, layer)}</section>"
    )


def _bars(layer: LayerReport) -> str:
    relative = layer.relative
    most, width = max(1.0, float(relative.max())), 1000 / layer.n_experts
    gap = min(2.0, width * 0.15)
    bars = "".join(
        f'<rect x="{e * width:.5g}" y="{_BARS * (1 - r / most):.4g}" width="{width - gap:.4g}" '
        f'height="{_BARS * r / most:.4g}"><title>expert {e}: {times(r)}</title></rect>'
        for e, r in enumerate(relative.tolist())
    )
    y = _BARS * (1 - 1 / most)
    return (
        f'<div class="bars"><svg id="bars" viewBox="0 0 1000 {_BARS}" preserveAspectRatio="none">{bars}'
        f'<line x1="0" x2="1000" y1="{y:.4g}" y2="{y:.4g}"/></svg>'
        f'<span class="mark" id="uniform" style="top:{y:.4g}px">uniform</span></div>'
        f'<div class="ends dim"><span>expert 0</span><span id="last">{layer.n_experts - 1}</span></div>'
    )


def _pairs(layer: LayerReport) -> str:
    rows = "".join(
        f"<tr><td>{p.first} + {p.second}<td>{p.together:,}<td>{p.expected:,.1f}<td>{times(p.lift)}"
        for p in layer.pairs[:TOP]
    )
    return (
        "<table><thead><tr><th>experts<th>together<th>expected<th>lift</thead>"
        f'<tbody id="closest">{rows}</tbody></table>'
    )


def _experts(report: Report, layer: LayerReport) -> str:
    total = max(float(layer.weights.sum()), 1e-30)
    rows = []
    for e in range(layer.n_experts):
        words = "".join(
            f"<code>{escape(label(report.trace.texts[t.token]))}</code>"
            for t in layer.tokens.top(e, "lift", TOP, report.least)
        )
        rows.append(
            f"<tr><th>{e}<td>{int(layer.counts[e]):,}<td>{times(layer.relative[e])}"
            f"<td>{100 * layer.weights[e] / total:.1f} %<td>{words}"
        )
    return (
        '<div class="tall"><table class="experts"><thead><tr><th>expert<th>tokens<th>load<th>weight<th>tokens it takes'
        f'</thead><tbody id="experts">{"".join(rows)}</tbody></table></div>'
    )


def strip(report: Report, layer: LayerReport) -> str:
    """The first tokens of the text, each in the colour of the expert with most of its weight."""
    n = min(STRIP, len(report.trace.tokens))
    share, ids = shares(layer.source.weights[:n]), layer.source.ids[:n]
    words = []
    for t in range(n):
        best = int(share[t].argmax())
        title = ", ".join(f"{e}: {100 * s:.0f} %" for e, s in zip(ids[t].tolist(), share[t].tolist(), strict=True))
        words.append(
            f'<span style="--e:{ids[t, best]};--w:{share[t, best]:.2f}" title="{title}">'
            f"{escape(flow(report.trace.text_of(t)))}</span>"
        )
    return (
        '<section><h2>Tokens</h2><p id="strip-about">Each token in the colour of the expert that has most of its '
        "routing weight in the layer above; the stronger the colour, the larger its share. Hover to see all of them."
        '</p><p class="script dim">With an expert chosen, the colour is its share of each token: '
        '<span class="ramp"></span> 0 to 100 %.</p>'
        f'<div id="strip">{"".join(words)}</div></section>'
    )
