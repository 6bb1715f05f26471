"""Random expert layers for tests: experts in any format and kind, and routings to them."""

from typing import Any

import numpy as np

import coterie
from array_kinds import floats, give, pack, take
from coterie import Experts, Routing
from coterie.formats import Format
from coterie.moe import moe_reference
from coterie.ops.dispatch import numpy_dtype
from tolerance import ROUNDED, assert_close, bound, errors, split

FOUR_BITS = Format.resolve("affine", 4, 32)


def experts_of(
    rng: np.random.Generator,
    kind: str,
    n_experts: int,
    hidden: int,
    inner: int,
    fmt: Format | str | None = FOUR_BITS,
    *,
    fused: bool = False,
    biases: bool = False,
    activation: str = "silu",
    down_fmt: Format | None = None,
) -> Experts:
    """Random experts; `fmt` is a format, or the dtype of plain arrays."""

    def projection(rows: int, columns: int, form: Any) -> Any:
        w = floats(rng, (n_experts, rows, columns), scale=columns**-0.5)
        return pack(w, form, kind) if isinstance(form, Format) else give(w.astype(numpy_dtype(form)), kind)

    rows = inner * (2 if fused else 1)
    sizes = {"gate_bias": rows, "up_bias": None if fused else inner, "down_bias": hidden}
    return Experts(
        projection(rows, hidden, fmt),
        None if fused else projection(inner, hidden, fmt),
        projection(hidden, inner, down_fmt or fmt),
        activation,
        **{
            name: give(floats(rng, (n_experts, size)), kind)
            for name, size in sizes.items()
            if biases and size is not None
        },
    )


def routing_of(rng: np.random.Generator, n_tokens: int, k: int, n_experts: int, empty: int | None = None) -> tuple:
    """Distinct experts for each token, none of them `empty`, and positive weights."""
    scores = rng.random((n_tokens, n_experts))
    if empty is not None:
        scores[:, empty] = -1
    ids = np.argsort(-scores, -1)[:, :k].astype(np.uint32)
    return ids, (rng.random((n_tokens, k)) + 0.1).astype(np.float32)


def run(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, experts: Experts, precision: str = "exact") -> np.ndarray:
    kind = experts.kind
    result = coterie.moe(give(x, kind), Routing(give(ids, kind), give(weights, kind)), experts, precision)
    return take(result, kind, x.dtype.name)


def check(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, experts: Experts) -> np.ndarray:
    """Both precisions against the reference; the exact result."""
    found, reference = run(x, ids, weights, experts), moe_reference(x, Routing(ids, weights), experts)
    limit = bound(x.dtype.name, experts.hidden, experts.intermediate, ids.shape[-1])
    limit += split(experts.kind, 4)  # activations and weights of two products
    assert_close(found, reference, limit)
    check_default(run(x, ids, weights, experts, "default"), reference, limit)
    return found


def check_default(found: np.ndarray, reference: np.ndarray, limit: float) -> None:
    """The default precision; a row of few numbers that nearly cancel may be off by more than the average row."""
    assert_close(found, reference, limit + 4 * ROUNDED)
    assert errors(found, reference)[1] <= limit + ROUNDED
