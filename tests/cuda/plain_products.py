"""Products with matrices and experts by PyTorch, on dequantised weights: for tests of what stands around them, which
need not wait until the interpreter has multiplied.
"""

from collections.abc import Sequence
from typing import Any

import torch

from coterie.backends import cuda
from coterie.backends.cuda.arranged import Arranged
from coterie.backends.cuda.layer import SlotOutputs
from coterie.formats import Packed
from coterie.ops import dispatch


def linears(
    x: Any, weights: Sequence[Any], biases: Sequence[Any], *, parts: int, alone: bool = False, dtype: Any = None
) -> list[Any]:
    """`coterie.backends.cuda.linear.linears`, in f32, row by row."""
    del parts, alone, dtype
    rows = _wide(x)
    products = [torch.cat([row[None] @ _dense(weight).mT for row in rows]) for weight in weights]
    return [y if bias is None else y + bias for y, bias in zip(products, biases, strict=True)]


def run_slots(
    x: Any, ids: Any, weights: Any, experts: Any, parts: int, dtype: Any, *, alone: bool = False, known: bool = False
) -> Any:
    """`coterie.backends.cuda.layer.run_slots`, in f32, row by row; no biases."""
    del parts, dtype, alone, known
    gate, up, down = map(_dense, (experts.gate, experts.up, experts.down))
    rows, chosen = [], ids.view(torch.int32)
    for row, own in zip(_wide(x), chosen.long(), strict=True):
        gated, upped = (row @ matrices[own].mT for matrices in (gate, up))
        hidden = cuda.glu(gated, upped, experts.activation)[:, :, None]
        rows.append((down[own] @ hidden)[..., 0])
    return SlotOutputs(torch.cat(rows), chosen.reshape(-1), weights, len(gate))


def run_dense(x: Any, gate: Any, up: Any, down: Any, activation: str, parts: int, *, alone: bool = False) -> Any:
    """`coterie.backends.cuda.layer.run_dense`, in f32, row by row."""
    gated, upped = linears(x, (gate, up), (None, None), parts=parts, alone=alone)
    return linears(cuda.glu(gated, upped, activation), (down,), (None,), parts=parts, alone=alone)[0]


def _wide(x: Any) -> Any:
    return x.wide if isinstance(x, Arranged) else x


def _dense(weight: Any) -> Any:
    if not isinstance(weight, Packed):
        return weight.float()
    if "dense" not in weight.derived:
        wide = dispatch.packed_like(weight, weight.codes, weight.scales.float(), weight.biases.float())
        weight.derived["dense"] = cuda.dequantize(wide, torch.float32)
    return weight.derived["dense"]
