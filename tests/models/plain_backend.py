"""The decoder's verbs in float64 on dequantised weights: slow, obvious, and independent of every kernel."""

from typing import Any

import numpy as np

from coterie.formats import Packed
from coterie.formats.codec import dequantize_f64


class PlainBackend:
    """`coterie.models.backend.Backend`, computing everything in float64."""

    def __init__(self) -> None:
        self._wide: dict[int, tuple[Any, np.ndarray]] = {}

    def _f64(self, weight: Any) -> np.ndarray:
        kept = self._wide.get(id(weight))
        if kept is None:
            wide = (
                dequantize_f64(weight.codes, weight.scales, weight.biases, weight.format)
                if isinstance(weight, Packed)
                else np.asarray(weight, np.float64)
            )
            kept = self._wide[id(weight)] = (weight, wide)
        return kept[1]

    def embed(self, weight: Any, ids: Any) -> np.ndarray:
        return self._f64(weight)[list(ids)]

    def linear(self, x: np.ndarray, weight: Any) -> np.ndarray:
        return x @ self._f64(weight).T

    def rms_norm(self, x: np.ndarray, weight: Any, eps: float) -> np.ndarray:
        scaled = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
        return scaled if weight is None else scaled * weight

    def rotary(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
        n = cos.shape[-1]
        first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        c, s = cos[:, None], sin[:, None]
        return np.concatenate((first * c - second * s, second * c + first * s, rest), axis=-1)

    def attend(
        self, queries: np.ndarray, keys: np.ndarray, values: np.ndarray, start: int, window: int | None, scale: float
    ) -> np.ndarray:
        group, capacity = queries.shape[1] // len(keys), keys.shape[1]
        out = np.empty_like(queries, dtype=np.float64)
        for t in range(len(queries)):
            position = start + t
            first = 0 if window is None else max(0, position - window + 1)
            slots = np.arange(first, position + 1) % capacity
            for head in range(queries.shape[1]):
                scores = keys[head // group, slots].astype(np.float64) @ queries[t, head] * scale
                shares = np.exp(scores - scores.max())
                out[t, head] = shares / shares.sum() @ values[head // group, slots].astype(np.float64)
        return out

    def join(self, parts: Any) -> np.ndarray:
        return np.concatenate(list(parts))

    def glu(self, gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
        if activation == "silu":
            return gate / (1 + np.exp(-gate)) * up
        assert activation == "gelu_tanh"
        return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up

    def route(self, logits: np.ndarray, spec: Any) -> tuple[np.ndarray, np.ndarray]:
        scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        ids = np.argsort(-scores, axis=-1, kind="stable")[:, : spec.top_k]
        weights = np.take_along_axis(scores, ids, axis=-1)
        if spec.renormalize:
            weights /= weights.sum(axis=-1, keepdims=True)
        if spec.per_expert_scale is not None:
            weights = weights * spec.per_expert_scale[ids]
        return ids, weights

    def moe(self, x: np.ndarray, routing: Any, experts: Any) -> np.ndarray:
        gate, up, down = (self._f64(weight) for weight in (experts.gate, experts.up, experts.down))
        out = np.zeros_like(x)
        for t, (ids, weights) in enumerate(zip(*routing, strict=True)):
            for expert, weight in zip(ids, weights, strict=True):
                inner = self.glu(gate[expert] @ x[t], up[expert] @ x[t], experts.activation)
                out[t] += weight * (down[expert] @ inner)
        return out

    def softcap(self, x: np.ndarray, cap: float) -> np.ndarray:
        return cap * np.tanh(x / cap)

    def to_numpy(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32)
