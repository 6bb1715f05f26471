"""The verbs on MLX arrays: MLX's own operations and compositions of them, lazy like MLX itself;
on a GPU of Apple's also Metal kernels of our own.

Nothing here waits for the device, except `quantize`, which must look at the values to refuse what cannot be quantised.
What is computed is f32 between input and output: MLX's CPU sums in the dtype of the input, where bf16 would lose most
of its digits.
"""

from coterie.backends.mlx.activations import glu, glu_fused
from coterie.backends.mlx.combine import accumulate, weighted_sum
from coterie.backends.mlx.dtypes import cast
from coterie.backends.mlx.experts import moe
from coterie.backends.mlx.matmul import gather_mm, gather_qmm, matvec, quantized_matmul
from coterie.backends.mlx.quantize import dequantize, quantize
from coterie.backends.mlx.routing import gather_topk_weights, group, route

__all__ = [
    "accumulate",
    "cast",
    "dequantize",
    "gather_mm",
    "gather_qmm",
    "gather_topk_weights",
    "glu",
    "glu_fused",
    "group",
    "matvec",
    "moe",
    "quantize",
    "quantized_matmul",
    "route",
    "weighted_sum",
]
