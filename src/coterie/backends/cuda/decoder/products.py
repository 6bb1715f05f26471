"""Products with matrices, and the experts layer, by PyTorch on dequantised weights: slow, and any format."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from coterie.backends import cuda
from coterie.formats import Packed
from coterie.ops import Routing, dispatch

Weight: TypeAlias = Packed | torch.Tensor


def linears(
    x: torch.Tensor, weights: Sequence[Weight], biases: Sequence[torch.Tensor | None], *, parts: int, alone: bool
) -> list[torch.Tensor]:
    """f32 [T, N] for each of the weights. parts: how many numbers of bf16 an activation is made of; alone: rows come
    out with the bits that they have in calls of their own.
    """
    products = [_product(_rounded(x, parts), dense(weight), alone) for weight in weights]
    return [y if bias is None else y + bias for y, bias in zip(products, biases, strict=True)]


def moe(x: torch.Tensor, routing: Routing, experts: Any, *, parts: int) -> torch.Tensor:
    """f32 [T, H]: the weighted sum of the outputs of each row's experts; row by row."""
    ids, (gate, up, down) = routing.ids.view(torch.int32).long(), map(dense, (experts.gate, experts.up, experts.down))
    out = torch.empty_like(x)
    for row in range(len(x)):
        chosen, own = ids[row], _rounded(x[row : row + 1], parts)
        gated, upped = (own @ matrices[chosen].mT for matrices in (gate, up))
        if experts.gate_bias is not None:
            gated, upped = gated + experts.gate_bias[chosen, None], upped + experts.up_bias[chosen, None]
        inner = _rounded(cuda.glu(gated, upped, experts.activation), parts)
        outputs = (inner @ down[chosen].mT)[:, 0]
        if experts.down_bias is not None:
            outputs = outputs + experts.down_bias[chosen]
        out[row] = routing.weights[row] @ outputs
    return out


def dense(weight: Weight) -> torch.Tensor:
    """The matrix in f32, dequantised once."""
    if not isinstance(weight, Packed):
        return weight.float()
    kept: torch.Tensor | None = weight.derived.get("cuda.dense")
    if kept is None:
        kept = weight.derived["cuda.dense"] = dequantized(weight)
    return kept


def dequantized(weight: Packed) -> torch.Tensor:
    """The matrix, or a stack, in f32; scales and biases meet as they are stored."""
    scales, biases = weight.scales, weight.biases
    if biases is not None:
        scales, biases = scales.float(), biases.float()
    parts = (None if part is None else part.contiguous() for part in (weight.codes, scales, biases))
    dense: torch.Tensor = cuda.dequantize(dispatch.packed_like(weight, *parts), torch.float32)
    return dense


def _rounded(x: torch.Tensor, parts: int) -> torch.Tensor:
    return x.bfloat16().float() if parts == 1 else x


def _product(x: torch.Tensor, matrix: torch.Tensor, alone: bool) -> torch.Tensor:
    if alone:
        return torch.cat([x[row : row + 1] @ matrix.mT for row in range(len(x))])
    return x @ matrix.mT
