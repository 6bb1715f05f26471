"""What the page's script reads: every layer's numbers as one JSON object, large arrays in base64."""

import base64
import json
from typing import Any

import numpy as np

from coterie.inspect.labels import label
from coterie.inspect.report import LayerReport, Report, shares

STRIP = 600
"""Tokens on the page's strip."""
TOP = 8
"""Tokens and pairs in a list of the page."""
NEVER, UNSAID = -127, -128
"""In place of a ratio: experts never chosen together, and pairs of which too few are expected."""
_PER_OCTAVE = 16


def embedded(report: Report, shown: LayerReport, n_octaves: int) -> str:
    """JSON that may stand inside of a script element: no `<`, and nothing but ASCII."""
    words: dict[int, int] = {}
    value = {
        "shown": report.layers.index(shown),
        "octaves": n_octaves,
        "tokens": len(report.trace.tokens),
        "layers": [_layer(report, layer, words) for layer in report.layers],
        "words": [label(report.trace.texts[token]) for token in words],
    }
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _layer(report: Report, layer: LayerReport, words: dict[int, int]) -> dict[str, Any]:
    n = min(STRIP, len(report.trace.tokens))
    total = max(float(layer.weights.sum()), 1e-30)
    return {
        "layer": layer.layer,
        "k": layer.source.top_k,
        "counts": layer.counts.tolist(),
        "weights": [round(float(w) / total, 4) for w in layer.weights],
        "entropy": [round(layer.router_entropy, 3), round(layer.load_entropy, 3)],
        "top": [_words(report, layer, expert, words) for expert in range(layer.n_experts)],
        "pairs": [[p.first, p.second, p.together, round(p.expected, 1)] for p in layer.pairs[:TOP]],
        "lift": _base64(_lift(layer)),
        "ids": _base64(layer.source.ids[:n].astype("<u2")),
        "shares": _base64(np.round(255 * shares(layer.source.weights[:n])).astype(np.uint8)),
    }


def _words(report: Report, layer: LayerReport, expert: int, words: dict[int, int]) -> list[int]:
    """The tokens that the expert takes by lift, as places in the page's list of words."""
    found = layer.tokens.top(expert, "lift", TOP, report.least)
    return [words.setdefault(token.token, len(words)) for token in found]


def _lift(layer: LayerReport) -> np.ndarray:
    """int8, pairs (i, j) with i < j row by row: sixteenths of octaves, `NEVER` and `UNSAID`."""
    lift = layer.log_lift()[np.triu_indices(layer.n_experts, 1)]
    with np.errstate(invalid="ignore"):
        scaled = np.clip(np.nan_to_num(np.round(lift * _PER_OCTAVE), neginf=0), -126, 126)
    return np.where(np.isnan(lift), UNSAID, np.where(np.isneginf(lift), NEVER, scaled)).astype(np.int8)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
