"""The decoder's verbs in float64 on dequantised weights: slow, obvious, and independent of every kernel."""

from typing import Any

import numpy as np

from coterie.formats import Packed
from coterie.formats.codec import dequantize_f64


class PlainBackend:
    """`coterie.models.backend.Backend`, computing everything in float64."""

    def __init__(self) -> None:
        self._wide: dict[int, tuple[Any, np.ndarray]] = {}

    @property
    def row_by_row(self) -> "PlainBackend":
        return self

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

    def embed(self, weight: Any, ids: Any, scale: float = 1.0) -> np.ndarray:
        return self._f64(weight)[list(ids)] * np.float32(scale)

    def linear(self, x: np.ndarray, weight: Any, *, exact: bool = False) -> np.ndarray:  # noqa: ARG002
        return x @ self._f64(weight).T

    def linears(self, x: np.ndarray, weights: Any, biases: Any, *, exact: bool = False) -> list[np.ndarray]:
        products = [self.linear(x, weight, exact=exact) for weight in weights]
        return [out if bias is None else out + bias for out, bias in zip(products, biases, strict=True)]

    def rms_norm(self, x: np.ndarray, weight: Any, eps: float) -> np.ndarray:
        scaled = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)
        return scaled if weight is None else scaled * weight

    def rotary(self, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool = False) -> np.ndarray:
        n = cos.shape[-1]
        if interleaved:
            turned = (x[..., 0 : 2 * n : 2] + 1j * x[..., 1 : 2 * n : 2]) * (cos + 1j * sin)[:, None]
            out = np.array(x)
            out[..., 0 : 2 * n : 2], out[..., 1 : 2 * n : 2] = turned.real, turned.imag
            return out
        first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        c, s = cos[:, None], sin[:, None]
        return np.concatenate((first * c - second * s, second * c + first * s, rest), axis=-1)

    def attend(
        self,
        queries: np.ndarray,
        keys: np.ndarray,
        values: np.ndarray,
        start: int,
        window: int | None,
        scale: float,
        sinks: np.ndarray | None = None,
    ) -> np.ndarray:
        group, capacity = queries.shape[1] // len(keys), keys.shape[1]
        out = np.empty((*queries.shape[:2], values.shape[-1]))
        for t in range(len(queries)):
            position = start + t
            first = 0 if window is None else max(0, position - window + 1)
            slots = np.arange(first, position + 1) % capacity
            for head in range(queries.shape[1]):
                scores = keys[head // group, slots].astype(np.float64) @ queries[t, head] * scale
                sink = -np.inf if sinks is None else float(sinks[head])
                highest = max(scores.max(), sink)
                shares = np.exp(scores - highest)
                shares /= shares.sum() + np.exp(sink - highest)
                out[t, head] = shares @ values[head // group, slots].astype(np.float64)
        return out

    def attend_latent(
        self,
        queries: np.ndarray,
        turned: np.ndarray,
        latents: np.ndarray,
        keys: np.ndarray,
        key_up: Any,
        value_up: Any,
        start: int,
        scale: float,
        *,
        key_transposed: bool,
    ) -> np.ndarray:
        to_keys, to_values = self._f64(key_up), self._f64(value_up)
        if key_transposed:
            to_keys = to_keys.swapaxes(1, 2)
        seen = latents[0, : start + len(queries)].astype(np.float64)
        shared = keys[0, : start + len(queries)].astype(np.float64)
        out = np.empty((*queries.shape[:2], to_values.shape[1]))
        for head in range(queries.shape[1]):
            whole = np.concatenate((seen @ to_keys[head].T, shared), axis=-1)[None]
            asked = np.concatenate((queries[:, head], turned[:, head]), axis=-1)[:, None]
            values = (seen @ to_values[head].T)[None]
            out[:, head] = self.attend(asked, whole, values, start, None, scale)[:, 0]
        return out

    def join(self, parts: Any) -> np.ndarray:
        return np.concatenate(list(parts))

    def clip(self, x: np.ndarray, limit: float) -> np.ndarray:
        return np.minimum(np.maximum(x, -limit), limit)

    def glu(self, gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
        if activation == "silu":
            return gate / (1 + np.exp(-gate)) * up
        if activation == "swiglu_clamped":
            gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
            return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)
        assert activation == "gelu_tanh"
        return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up

    def route(self, logits: np.ndarray, spec: Any) -> tuple[np.ndarray, np.ndarray]:
        if spec.scoring == "sigmoid":
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
        choice = scores if spec.selection_bias is None else scores + spec.selection_bias
        ids = np.stack([_best(row, spec) for row in choice])
        weights = np.take_along_axis(scores, ids, axis=-1)
        if spec.renormalize:
            weights /= weights.sum(axis=-1, keepdims=True)
        if spec.per_expert_scale is not None:
            weights = weights * spec.per_expert_scale[ids]
        return ids, weights * spec.scaling_factor

    def moe(self, x: np.ndarray, routing: Any, experts: Any) -> np.ndarray:
        gate, up, down = (self._f64(weight) for weight in (experts.gate, experts.up, experts.down))
        biases = (experts.gate_bias, experts.up_bias, experts.down_bias)
        gate_bias, up_bias, down_bias = (np.zeros(len(gate)) if bias is None else bias for bias in biases)
        out = np.zeros_like(x)
        for t, (ids, weights) in enumerate(zip(*routing, strict=True)):
            for e, weight in zip(ids, weights, strict=True):
                inner = self.glu(gate[e] @ x[t] + gate_bias[e], up[e] @ x[t] + up_bias[e], experts.activation)
                out[t] += weight * (down[e] @ inner + down_bias[e])
        return out

    def softcap(self, x: np.ndarray, cap: float) -> np.ndarray:
        return cap * np.tanh(x / cap)

    def to_numpy(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float32)


def _best(choice: np.ndarray, spec: Any) -> np.ndarray:
    """The experts that one token goes to: the best `top_k` of those whose group is among the best."""
    groups = np.split(np.arange(len(choice)), spec.n_groups)
    summed = 2 if spec.group_score == "top2" and spec.n_groups > 1 else 1
    worth = [np.sort(choice[group])[-summed:].sum() for group in groups]
    allowed = np.concatenate([groups[i] for i in sorted(np.argsort(worth)[::-1][: spec.top_groups])])
    return allowed[np.argsort(-choice[allowed], kind="stable")[: spec.top_k]]
