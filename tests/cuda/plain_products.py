"""Products with matrices and experts by PyTorch, on dequantised weights: for tests of what stands around them, which
need not wait until the interpreter has multiplied.
"""

from collections.abc import Sequence
from typing import Any

import torch

from coterie.backends import cuda
from coterie.formats import Packed
from coterie.ops import dispatch


def linears(x: Any, weights: Sequence[Any], biases: Sequence[Any], *, parts: int, alone: bool = False) -> list[Any]:
    """`coterie.backends.cuda.linear.linears`, in f32, row by row."""
    del parts, alone
    products = [torch.cat([row[None] @ _dense(weight).mT for row in x]) for weight in weights]
    return [y if bias is None else y + bias for y, bias in zip(products, biases, strict=True)]


def run_experts(x: Any, ids: Any, weights: Any, experts: Any, parts: int, dtype: Any, *, alone: bool = False) -> Any:
    """`coterie.backends.cuda.layer.run_experts`, in f32, row by row; no biases."""
    del parts, dtype, alone
    gate, up, down = map(_dense, (experts.gate, experts.up, experts.down))
    rows = []
    for row, chosen, shares in zip(x, ids.view(torch.int32).long(), weights, strict=True):
        gated, upped = (row @ matrices[chosen].mT for matrices in (gate, up))
        hidden = cuda.glu(gated, upped, experts.activation)[:, :, None]
        rows.append(shares @ (down[chosen] @ hidden)[..., 0])
    return torch.stack(rows)


def _dense(weight: Any) -> Any:
    if not isinstance(weight, Packed):
        return weight.float()
    if "dense" not in weight.derived:
        wide = dispatch.packed_like(weight, weight.codes, weight.scales.float(), weight.biases.float())
        weight.derived["dense"] = cuda.dequantize(wide, torch.float32)
    return weight.derived["dense"]
