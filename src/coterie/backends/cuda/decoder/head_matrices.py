"""Matrices of a decoder that are dequantised once: those of heads, before and behind attention over latents."""

import torch

from coterie.backends.cuda.codecs import dequantize
from coterie.backends.cuda.stacks import Weight
from coterie.formats import Packed
from coterie.ops import dispatch


def by_head(weight: Weight, *, transposed: bool) -> torch.Tensor:
    """A stack of matrices in f32, dense, the other way round if so; scales and biases meet as they are stored."""
    wide: torch.Tensor = _dequantized(weight) if isinstance(weight, Packed) else weight.float()
    return (wide.mT if transposed else wide).contiguous()


def _dequantized(weight: Packed) -> torch.Tensor:
    scales, biases = weight.scales, weight.biases
    if biases is not None:
        scales, biases = scales.float(), biases.float()
    parts = (None if part is None else part.contiguous() for part in (weight.codes, scales, biases))
    dense: torch.Tensor = dequantize(dispatch.packed_like(weight, *parts), torch.float32)
    return dense
