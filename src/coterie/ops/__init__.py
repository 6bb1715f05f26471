"""The operations: each with its contract, the checks at its door, and its float64 reference.

Arrays in, arrays of the same kind out, on the same device.
"""

from coterie.ops.activations import (
    ACTIVATIONS,
    Activation,
    glu,
    glu_fused,
    glu_fused_reference,
    glu_reference,
)
from coterie.ops.combine import accumulate, accumulate_reference, weighted_sum, weighted_sum_reference
from coterie.ops.dense import matvec, matvec_reference
from coterie.ops.gather import gather_mm, gather_mm_reference
from coterie.ops.grouping import Groups, group, group_reference
from coterie.ops.products import (
    gather_qmm,
    gather_qmm_reference,
    quantized_matmul,
    quantized_matmul_reference,
)
from coterie.ops.quantization import dequantize, dequantize_reference, quantize
from coterie.ops.routing import (
    RouteSpec,
    Routing,
    gather_topk_weights,
    gather_topk_weights_reference,
    route,
    route_reference,
)

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "Groups",
    "RouteSpec",
    "Routing",
    "accumulate",
    "accumulate_reference",
    "dequantize",
    "dequantize_reference",
    "gather_mm",
    "gather_mm_reference",
    "gather_qmm",
    "gather_qmm_reference",
    "gather_topk_weights",
    "gather_topk_weights_reference",
    "glu",
    "glu_fused",
    "glu_fused_reference",
    "glu_reference",
    "group",
    "group_reference",
    "matvec",
    "matvec_reference",
    "quantize",
    "quantized_matmul",
    "quantized_matmul_reference",
    "route",
    "route_reference",
    "weighted_sum",
    "weighted_sum_reference",
]
