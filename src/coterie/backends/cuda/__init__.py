"""The verbs on CUDA tensors of PyTorch, as Triton kernels. Nothing waits for the device, so that calls can be captured
in a CUDA graph, except `quantize`, which must look at the values to refuse what cannot be quantised; every sum has one
order, so that runs repeat to the bit.
"""

from coterie.backends.cuda import tensors
from coterie.backends.cuda.activations import glu, glu_fused
from coterie.backends.cuda.codecs import dequantize, quantize
from coterie.backends.cuda.combine import accumulate, weighted_sum
from coterie.backends.cuda.device import check_machine
from coterie.backends.cuda.layer import moe
from coterie.backends.cuda.matmul import gather_mm, gather_qmm, matvec, quantized_matmul
from coterie.backends.cuda.routing import gather_topk_weights, group, route

__all__ = [
    "accumulate",
    "check_machine",
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
    "tensors",
    "weighted_sum",
]
