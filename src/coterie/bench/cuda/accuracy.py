"""The error of a layer against float64: router logits, a few tokens, and the weights' exact values."""

from dataclasses import dataclass

import numpy as np
import torch

from coterie.arrays import as_numpy
from coterie.formats import Packed
from coterie.formats.microscaling import code_values
from coterie.moe import Experts
from coterie.ops.activations import glu_reference
from coterie.ops.routing import RouteSpec, route_reference

_CHECKED = 8
_E8M0_BIAS = 127


@dataclass(frozen=True, slots=True)
class Errors:
    """Root mean square errors: the worst row's over that row's own, and all rows' over everything."""

    worst_row: float
    overall: float


class Reference:
    """The exact results of some of a call's tokens, the first and the last among them."""

    def __init__(self, x: torch.Tensor, logits: torch.Tensor, experts: Experts, top_k: int) -> None:
        n_tokens = len(x)
        self._places = np.unique(np.linspace(0, n_tokens - 1, min(_CHECKED, n_tokens)).astype(np.int64))
        chosen = torch.from_numpy(self._places).to(x.device)
        ids, weights = route_reference(as_numpy(logits[chosen].cpu()), RouteSpec(top_k))
        self._wanted = _layer(x[chosen].double(), ids, weights, experts)

    def errors(self, output: torch.Tensor) -> Errors:
        """Those of a layer's output [T, H]."""
        found = output[torch.from_numpy(self._places).to(output.device)].double().cpu().numpy()
        difference, scale = (np.square(part).mean(-1) for part in (found - self._wanted, self._wanted))
        worst = np.sqrt(difference / scale).max()
        return Errors(float(worst), float(np.sqrt(difference.mean() / scale.mean())))


def _layer(x: torch.Tensor, ids: np.ndarray, weights: np.ndarray, experts: Experts) -> np.ndarray:
    """The layer's output, float64 [C, H]; one expert at a time is decoded."""
    out = np.zeros(tuple(x.shape))
    for expert in np.unique(ids):
        rows, slots = np.nonzero(ids == expert)
        tokens = x[torch.from_numpy(rows).to(x.device)]
        halves = [tokens @ decode(part, int(expert)).T for part in (experts.gate, experts.up) if part is not None]
        gate, up = halves if len(halves) == 2 else halves[0].chunk(2, -1)
        gated = torch.from_numpy(glu_reference(gate.cpu().numpy(), up.cpu().numpy(), experts.activation))
        down = gated.to(x.device) @ decode(experts.down, int(expert)).T
        out[rows] += weights[rows, slots][:, None] * down.cpu().numpy()
    return out


def decode(matrix: Packed | torch.Tensor, expert: int) -> torch.Tensor:
    """An expert's matrix, float64 [N, K]: plain, or of codes of 4 or 8 bits, affine or with E8M0 scales."""
    if not isinstance(matrix, Packed):
        return matrix[expert].double()
    fmt = matrix.format
    octets = matrix.codes[expert].view(torch.uint8)
    codes = octets if fmt.bits == 8 else torch.stack([octets & 15, octets >> 4], -1).flatten(-2)
    groups = codes.unflatten(-1, (-1, fmt.group_size))
    scales = matrix.scales[expert].double()[..., None]
    if matrix.biases is not None:
        values = groups.double() * scales + matrix.biases[expert].double()[..., None]
    else:
        table = torch.from_numpy(code_values(fmt).astype(np.float64)).to(octets.device)
        values = table[groups.long()] * torch.exp2(scales - _E8M0_BIAS)
    return values.flatten(-2)
