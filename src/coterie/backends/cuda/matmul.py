"""The verbs of matrix products. Activations are bfloat16 or, for wider ones, the sum of two bfloat16 numbers.

Products along the rows of a matrix, as they are stored, run on the kernels of this back end. The other way round
(`transpose=False`, or a plain stack [E, K, N] in that order) PyTorch multiplies, quantised weights as f32, a piece of
bounded size at a time: right, and slow.
"""

import torch

from coterie.backends.cuda.codecs import dequantize
from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.halves import serves
from coterie.backends.cuda.layer import parts_of
from coterie.backends.cuda.linear import linears
from coterie.backends.cuda.products import multiply, prepare_and_group
from coterie.backends.cuda.stacks import Weight, stack_of
from coterie.backends.cuda.tiles import tile_for
from coterie.formats import Packed
from coterie.ops import dispatch

_PIECE = 1 << 26
"""Weights that are dequantised, or gathered, at a time."""


@within_memory
def quantized_matmul(x: torch.Tensor, packed: Packed, transpose: bool) -> torch.Tensor:
    if transpose:
        return linears(x, (packed,), (None,), parts=parts_of(x), dtype=x.dtype)[0]
    n_rows, n_columns = packed.shape
    total = torch.zeros((len(x), n_columns), dtype=torch.float32, device=x.device)
    step = max(1, _PIECE // n_columns)
    for first in range(0, n_rows, step):
        rows = slice(first, first + step)
        total += x[:, rows].float() @ _wide(_part(packed, rows))
    return total.to(x.dtype)


@within_memory
def matvec(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return linears(x[None], (weight,), (None,), parts=parts_of(x), dtype=x.dtype)[0][0]


@within_memory
def gather_qmm(
    x: torch.Tensor, packed: Packed, lhs: torch.Tensor, rhs: torch.Tensor, transpose: bool, sorted_indices: bool
) -> torch.Tensor:
    del sorted_indices  # sorting costs nothing beside the products
    if transpose:
        return _gathered(x, packed, lhs, rhs)
    n_rows, n_columns = packed.shape[-2:]
    out = torch.empty((len(lhs), x.shape[1], n_columns), dtype=x.dtype, device=x.device)
    step = max(1, _PIECE // (n_rows * n_columns))
    for first in range(0, len(lhs), step):
        pairs = slice(first, first + step)
        chosen = _part(packed, _inside(rhs[pairs], len(packed.codes)))
        out[pairs] = (x[_inside(lhs[pairs], len(x))].float() @ _wide(chosen)).to(x.dtype)
    return out


@within_memory
def gather_mm(
    a: torch.Tensor, b: torch.Tensor, lhs: torch.Tensor, rhs: torch.Tensor, sorted_indices: bool
) -> torch.Tensor:
    del sorted_indices
    if b.mT.is_contiguous():
        return _gathered(a, b.mT, lhs, rhs)
    out = torch.empty((len(lhs), a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device)
    step = max(1, _PIECE // (b.shape[1] * b.shape[2]))
    for first in range(0, len(lhs), step):
        pairs = slice(first, first + step)
        out[pairs] = a[_inside(lhs[pairs], len(a))] @ b[_inside(rhs[pairs], len(b))].to(a.dtype)
    return out


def _gathered(x: torch.Tensor, weight: Weight, lhs: torch.Tensor, rhs: torch.Tensor) -> torch.Tensor:
    """x[lhs] [R, M, K] times the transposes of weight[rhs] [R, N, K]: [R, M, N]; ids out of range give zeros."""
    stack, n_rows = stack_of(weight), x.shape[1]
    rows = x[_inside(lhs, len(x))].reshape(-1, x.shape[2])
    ids = rhs.repeat_interleave(n_rows) if n_rows > 1 else rhs
    parts = parts_of(x)
    tile = tile_for(stack, len(rows), parts, serves(stack))
    prepared, slots = prepare_and_group(rows, stack, parts, tile, ids, 1)
    out = multiply(prepared, slots, stack, None, tile, x.dtype, empty=False)
    return out.reshape(len(lhs), n_rows, -1)


def _inside(ids: torch.Tensor, n: int) -> torch.Tensor:
    """Indices none of which is out of range: nobody could look at them while a graph is captured."""
    return ids.clamp(0, n - 1).long()


def _part(packed: Packed, index: slice | torch.Tensor) -> Packed:
    """Some of the matrices of a stack, or of the rows of a matrix."""
    parts = (packed.codes, packed.scales, packed.biases)
    return dispatch.packed_like(packed, *(None if part is None else _picked(part, index) for part in parts))


def _picked(part: torch.Tensor, index: slice | torch.Tensor) -> torch.Tensor:
    """PyTorch picks no unsigned integers, so it is given signed ones."""
    if part.dtype == torch.uint32:
        return part.view(torch.int32)[index].contiguous().view(torch.uint32)
    return part[index].contiguous()


def _wide(packed: Packed) -> torch.Tensor:
    """The matrices in f32; scales and biases of affine codes meet as they are stored."""
    if packed.biases is not None:
        packed = dispatch.packed_like(packed, packed.codes, packed.scales.float(), packed.biases.float())
    wide: torch.Tensor = dequantize(packed, torch.float32)
    return wide
