"""Attention over a cache of latents: queries are taken through the key matrix the other way round and meet the latents
themselves; the mixed latents become values at the end.
"""

import mlx.core as mx

from coterie.backends.mlx.decoder.attention import begin, visible
from coterie.backends.mlx.matmul import quantized_matmul
from coterie.formats import Packed

Weight = Packed | mx.array


def attend_latent(
    queries: mx.array,
    turned: mx.array,
    latents: mx.array,
    keys: mx.array,
    key_up: Weight,
    value_up: Weight,
    start: int,
    scale: float,
    *,
    key_transposed: bool,
) -> mx.array:
    end = start + len(queries)
    seen_latents, seen_keys = latents[:, :end], keys[:, :end]
    absorbed = _by_head(queries.transpose(1, 0, 2) * scale, key_up, key_transposed)
    scores = absorbed @ seen_latents.swapaxes(1, 2)
    scores = scores + (turned.transpose(1, 0, 2) * scale) @ seen_keys.swapaxes(1, 2)
    mask = visible(start, end, 0, None)
    if mask is not None:
        scores = mx.where(mask, scores, float("-inf"))
    mixed = mx.softmax(scores, axis=-1, precise=True) @ seen_latents
    out: mx.array = _by_head(mixed, value_up, True).transpose(1, 0, 2)
    begin(out)
    return out


def _by_head(x: mx.array, weight: Weight, transpose: bool) -> mx.array:
    """x [H, T, K] times each head's own matrix [H, N, K] transposed, or [H, K, N] as it is."""
    if isinstance(weight, Packed):
        return quantized_matmul(x, weight, transpose)
    matrix = weight.astype(mx.float32)
    return x @ (matrix.swapaxes(1, 2) if transpose else matrix)
