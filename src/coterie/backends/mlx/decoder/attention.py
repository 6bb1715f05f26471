"""Causal grouped-query attention over a cache: MLX's own, over the slots that any of the queries sees."""

import mlx.core as mx
import numpy as np


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    start: int,
    window: int | None,
    scale: float,
    sinks: mx.array | None = None,
) -> mx.array:
    end = start + len(queries)
    first = 0 if window is None else max(0, start + 1 - window)
    out = mx.fast.scaled_dot_product_attention(
        queries.transpose(1, 0, 2)[None],
        slots(keys, first, end)[None],
        slots(values, first, end)[None],
        scale=scale,
        mask=visible(start, end, first, window),
        sinks=sinks,
    )
    mixed: mx.array = out[0].transpose(1, 0, 2)
    begin(mixed)
    return mixed


def begin(array: mx.array) -> None:
    """Let the device begin to compute `array`."""
    mx.async_eval(array)  # type: ignore[no-untyped-call]


def slots(store: mx.array, first: int, end: int) -> mx.array:
    """Positions first ... end - 1 of a store [H, capacity, D] in order; position p stands at slot p % capacity."""
    capacity = store.shape[1]
    begin, n = first % capacity, end - first
    if begin + n <= capacity:
        return store[:, begin : begin + n]
    return mx.concatenate([store[:, begin:], store[:, : begin + n - capacity]], axis=1)


def visible(start: int, end: int, first: int, window: int | None) -> mx.array | None:
    """Which of the positions first ... end - 1 the queries at start ... end - 1 see; None for all."""
    if end - start == 1:
        return None
    queries, positions = np.arange(start, end)[:, None], np.arange(first, end)
    seen = positions <= queries
    if window is not None:
        seen &= positions > queries - window
    return mx.array(seen)
