"""MLX dtypes by plain name."""

import mlx.core as mx


def cast(array: mx.array, name: str) -> mx.array:
    return array.astype(getattr(mx, name))


def promoted(first: mx.Dtype, second: mx.Dtype) -> mx.Dtype:
    return first if first == second else mx.float32
