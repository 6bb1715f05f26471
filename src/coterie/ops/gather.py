"""Which matrix meets which: the indices of `gather_mm` and `gather_qmm`, and `gather_mm` itself.

Both operands are stacks of matrices with any leading axes, flattened into one. lhs_indices chooses from the first
stack, rhs_indices from the second; they broadcast, and the result has one matrix for each pair. An index array that is
left out counts through its stack in the stack's own shape, so that x [T, 1, M, K] with rhs_indices [T, k] meets k
experts a token.
"""

import math
from dataclasses import dataclass

import numpy as np

from coterie.arrays import Array, Kind, as_numpy, from_numpy
from coterie.errors import ArgumentError
from coterie.ops import checks, dispatch

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Checked indices: lhs and rhs as the back end takes them, the leading shape of the result, and what is sorted.

    For the CPU both are dense uint32 [R], always there. For MLX they keep the caller's shape, None included.
    """

    lhs: Array | None
    rhs: Array | None
    batch: Shape
    sorted_indices: bool


def pair_up(
    lhs_indices: Array | None, rhs_indices: Array | None, lhs_batch: Shape, rhs_batch: Shape, kind: Kind, promised: bool
) -> Pairs:
    """Check the indices against the leading shapes of both stacks and broadcast them.

    `promised`: the caller says that the one index array that is given ascends; if it does not, that is refused.
    """
    n_lhs, n_rhs = math.prod(lhs_batch), math.prod(rhs_batch)
    lhs = None if lhs_indices is None else checks.integer_ids(lhs_indices, "lhs_indices", kind, n_lhs)
    rhs = None if rhs_indices is None else checks.integer_ids(rhs_indices, "rhs_indices", kind, n_rhs)
    lhs_shape = lhs_batch if lhs is None else tuple(lhs.shape)
    rhs_shape = rhs_batch if rhs is None else tuple(rhs.shape)
    batch = lhs_shape if lhs_shape == rhs_shape else _broadcast(lhs_shape, rhs_shape)
    if promised and (lhs is None) != (rhs is None):
        _check_ascending(lhs if rhs is None else rhs, "rhs_indices" if lhs is None else "lhs_indices")
    if kind == "mlx":
        return Pairs(lhs, rhs, batch, promised)
    ascending = promised and lhs is None
    return Pairs(_flat(lhs, n_lhs, lhs_shape, batch), _flat(rhs, n_rhs, rhs_shape, batch), batch, ascending)


def _broadcast(lhs_shape: Shape, rhs_shape: Shape) -> Shape:
    try:
        return np.broadcast_shapes(lhs_shape, rhs_shape)
    except ValueError:
        raise checks.shape_error(
            f"indices of shape {list(lhs_shape)} (lhs) and {list(rhs_shape)} (rhs) do not broadcast"
        ) from None


def _check_ascending(indices: Array | None, name: str) -> None:
    flat = as_numpy(indices).reshape(-1)
    if (flat[1:] < flat[:-1]).any():
        raise ArgumentError(
            f"{name} does not ascend; call without sorted_indices, or sort first", code="sorted_indices"
        )


def _flat(ids: np.ndarray | None, n: int, shape: Shape, batch: Shape) -> np.ndarray:
    if ids is None:
        ids = np.arange(n, dtype=np.uint32).reshape(shape)
    if shape != batch:
        ids = np.broadcast_to(ids, batch)
    return np.ascontiguousarray(ids).reshape(-1)


def gather_mm(
    a: Array,
    b: Array,
    lhs_indices: Array | None = None,
    rhs_indices: Array | None = None,
    *,
    sorted_indices: bool = False,
) -> Array:
    """a[lhs_indices] @ b[rhs_indices], as `mx.gather_mm` does.

    a: [..., M, K], b: [..., K, N] in f32, f16 or bf16; indices are integers in range, of shapes that broadcast. Returns
    [indices..., M, N] in the operands' dtype, f32 where they differ; sums are in f32. Without indices: a plain matmul.
    A transposed view b = w.swapaxes(-1, -2) is used where it lies. `sorted_indices` promises that the only index array
    ascends.
    """
    kind = dispatch.kind_of_both(a, b, ("a", "b"))
    dtype = checks.promoted(checks.float_dtype(a, "a"), checks.float_dtype(b, "b"))
    a_shape, b_shape = tuple(a.shape), tuple(b.shape)
    if len(a_shape) < 2 or len(b_shape) < 2 or a_shape[-1] != b_shape[-2]:
        raise checks.shape_error(f"a is {list(a_shape)} and b {list(b_shape)}, expected [..., M, K] and [..., K, N]")
    pairs = pair_up(lhs_indices, rhs_indices, a_shape[:-2], b_shape[:-2], kind, sorted_indices)
    out_shape = (*pairs.batch, a_shape[-2], b_shape[-1])
    if 0 in out_shape or a_shape[-1] == 0:
        return dispatch.zeros(out_shape, dtype, kind)
    run = dispatch.verb("gather_mm", kind)
    if kind == "mlx":
        return run(a, b, pairs.lhs, pairs.rhs, pairs.sorted_indices)
    first = checks.cast(dispatch.native(a, kind), dtype, kind).reshape(-1, *a_shape[-2:])
    second = _dense_either_way(as_numpy(b)).reshape(-1, *b_shape[-2:])
    result = run(first, second, pairs.lhs, pairs.rhs, pairs.sorted_indices).reshape(out_shape)
    return result if kind == "numpy" else from_numpy(result, kind)


def gather_mm_reference(
    a: Array, b: Array, lhs_indices: Array | None = None, rhs_indices: Array | None = None
) -> np.ndarray:
    """`gather_mm` in float64, pair by pair."""
    x, w = (as_numpy(stack).astype(np.float64) for stack in (a, b))
    lhs, rhs = reference_pairs(lhs_indices, rhs_indices, x.shape[:-2], w.shape[:-2])
    x, w = x.reshape(-1, *x.shape[-2:]), w.reshape(-1, *w.shape[-2:])
    out = np.zeros((*lhs.shape, x.shape[-2], w.shape[-1]))
    for place in np.ndindex(*lhs.shape):
        out[place] = x[lhs[place]] @ w[rhs[place]]
    return out


def reference_pairs(
    lhs_indices: Array | None, rhs_indices: Array | None, lhs_batch: Shape, rhs_batch: Shape
) -> tuple[np.ndarray, np.ndarray]:
    """Both index arrays, defaults filled in, broadcast to one shape."""
    given = ((lhs_indices, lhs_batch), (rhs_indices, rhs_batch))
    filled = [
        np.arange(math.prod(batch)).reshape(batch) if ids is None else as_numpy(ids).astype(np.int64)
        for ids, batch in given
    ]
    lhs, rhs = np.broadcast_arrays(*filled)
    return lhs, rhs


def _dense_either_way(b: np.ndarray) -> np.ndarray:
    """b as it lies if it, or its transpose, is dense: what a kernel can read row by row."""
    return b if b.flags.c_contiguous or b.swapaxes(-1, -2).flags.c_contiguous else np.ascontiguousarray(b)
