"""The CPU back end: the library's verbs on NumPy arrays, compiled by Numba for the machine at hand.

Arguments come checked from `coterie.ops`: dense arrays in a canonical shape, indices in range.
"""

from coterie.backends.cpu.codecs import dequantize, quantize
from coterie.backends.cpu.combine import accumulate, weighted_sum
from coterie.backends.cpu.glu import glu, glu_fused
from coterie.backends.cpu.isa import describe
from coterie.backends.cpu.layer import moe
from coterie.backends.cpu.pool import set_num_threads
from coterie.backends.cpu.products import gather_mm, gather_qmm, matvec, quantized_matmul
from coterie.backends.cpu.routing import gather_topk_weights, group, route

__all__ = [
    "accumulate",
    "dequantize",
    "describe",
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
    "set_num_threads",
    "weighted_sum",
]
