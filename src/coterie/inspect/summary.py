"""A report as one JSON object: every load, the pairs of experts, the tokens that each of them takes."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from coterie.inspect.report import LayerReport, Pair, Report
from coterie.inspect.tokens import Order, TokenCount


def summary(report: Report, top: int = 10) -> dict[str, Any]:
    """The report as plain values; `top` tokens for each expert, by count and by lift."""
    trace = report.trace
    return {
        "model": trace.model,
        "fingerprint": trace.fingerprint,
        "n_tokens": len(trace.tokens),
        "window": trace.window,
        "n_windows": trace.n_windows,
        "n_layers": trace.n_layers,
        "least_for_lift": report.least,
        "layers": [_layer(report, layer, top) for layer in report.layers],
    }


def dumps(value: Any, indent: str = "") -> str:
    """JSON for people and programs: indented, what holds only plain values in one line, nothing but ASCII."""
    nested = isinstance(value, dict | list) and any(isinstance(item, dict | list) for item in _items(value))
    if not nested:
        return json.dumps(value, allow_nan=False)
    inner = f"{indent}  "
    if isinstance(value, dict):
        lines = [f"{json.dumps(key)}: {dumps(item, inner)}" for key, item in value.items()]
        return f"{{\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}}}"
    return f"[\n{inner}" + f",\n{inner}".join(dumps(item, inner) for item in value) + f"\n{indent}]"


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _layer(report: Report, layer: LayerReport, top: int) -> dict[str, Any]:
    seen, _ = layer.coactivation()
    return {
        "layer": layer.layer,
        "n_experts": layer.n_experts,
        "top_k": layer.source.top_k,
        "router_entropy_bits": layer.router_entropy,
        "load_entropy_bits": layer.load_entropy,
        "max_entropy_bits": float(np.log2(layer.n_experts)),
        "unused": layer.unused,
        "experts": [_expert(report, layer, expert, top) for expert in range(layer.n_experts)],
        "pairs": [_pair(pair) for pair in layer.pairs],
        "together": [row[place + 1 :].tolist() for place, row in enumerate(seen[:-1])],
    }


def _expert(report: Report, layer: LayerReport, expert: int, top: int) -> dict[str, Any]:
    def tokens(by: Order, least: int) -> list[dict[str, Any]]:
        return [_token(report, found) for found in layer.tokens.top(expert, by, top, least)]

    n, weight = int(layer.counts[expert]), float(layer.weights[expert])
    return {
        "expert": expert,
        "n_tokens": n,
        "share_of_tokens": n / len(report.trace.tokens),
        "relative_load": float(layer.relative[expert]),
        "weight": weight,
        "tokens_by_count": tokens("count", 1),
        "tokens_by_lift": tokens("lift", report.least),
    }


def _token(report: Report, found: TokenCount) -> dict[str, Any]:
    return {**asdict(found), "text": report.trace.texts[found.token]}


def _pair(pair: Pair) -> dict[str, Any]:
    return {**asdict(pair), "lift": pair.lift}
