"""Which matrix meets which: the indices of `gather_mm` and `gather_qmm`, and `gather_mm` itself.

Both operands are stacks of matrices with any leading axes, flattened into one. lhs_indices chooses from the first
stack, rhs_indices from the second; they broadcast, and the result has one matrix for each pair. An index array that is
left out counts through its stack in the stack's own shape, so that x [T, 1, M, K] with rhs_indices [T, k] meets k
experts a token.
"""

import math
from dataclasses import dataclass

import numpy as np

from coterie.arrays import Array, as_numpy
from coterie.errors import ArgumentError
from coterie.ops import checks, dispatch
from coterie.ops.forms import FORMS, Form, Shape


@dataclass(frozen=True, slots=True)
class Pairs:
    """Checked indices: lhs and rhs as the back end takes them, the leading shape of the result, and what is sorted.

    Both are [R] and always there; for MLX they keep the caller's shape, None included.
    """

    lhs: Array | None
    rhs: Array | None
    batch: Shape
    sorted_indices: bool


def pair_up(
    lhs_indices: Array | None,
    rhs_indices: Array | None,
    lhs_batch: Shape,
    rhs_batch: Shape,
    form: Form,
    promised: bool,
    like: Array,
) -> Pairs:
    """Check the indices against the leading shapes of both stacks and broadcast them, on the device of `like`.

    `promised`: the caller says that the one index array that is given ascends; if it does not, that is refused.
    """
    for name, ids in (("lhs_indices", lhs_indices), ("rhs_indices", rhs_indices)):
        if ids is not None:
            dispatch.kind_of_both(like, ids, ("the first argument", name))
    n_lhs, n_rhs = math.prod(lhs_batch), math.prod(rhs_batch)
    lhs = None if lhs_indices is None else checks.integer_ids(lhs_indices, "lhs_indices", form, n_lhs)
    rhs = None if rhs_indices is None else checks.integer_ids(rhs_indices, "rhs_indices", form, n_rhs)
    lhs_shape = lhs_batch if lhs is None else tuple(lhs.shape)
    rhs_shape = rhs_batch if rhs is None else tuple(rhs.shape)
    batch = lhs_shape if lhs_shape == rhs_shape else _broadcast(lhs_shape, rhs_shape)
    if promised and (lhs is None) != (rhs is None):
        _check_ascending(lhs if rhs is None else rhs, "rhs_indices" if lhs is None else "lhs_indices", form)
    return Pairs(
        form.spread(lhs, n_lhs, lhs_shape, batch, like),
        form.spread(rhs, n_rhs, rhs_shape, batch, like),
        batch,
        promised and (lhs is None or not form.flattens),
    )


def _broadcast(lhs_shape: Shape, rhs_shape: Shape) -> Shape:
    try:
        return np.broadcast_shapes(lhs_shape, rhs_shape)
    except ValueError:
        raise checks.shape_error(
            f"indices of shape {list(lhs_shape)} (lhs) and {list(rhs_shape)} (rhs) do not broadcast"
        ) from None


def _check_ascending(indices: Array | None, name: str, form: Form) -> None:
    if not form.ascends(indices):
        raise ArgumentError(
            f"{name} does not ascend; call without sorted_indices, or sort first", code="sorted_indices"
        )


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
    form = FORMS[dispatch.kind_of_both(a, b, ("a", "b"))]
    dtype = checks.promoted(checks.float_dtype(a, "a"), checks.float_dtype(b, "b"))
    a_shape, b_shape = tuple(a.shape), tuple(b.shape)
    if len(a_shape) < 2 or len(b_shape) < 2 or a_shape[-1] != b_shape[-2]:
        raise checks.shape_error(f"a is {list(a_shape)} and b {list(b_shape)}, expected [..., M, K] and [..., K, N]")
    pairs = pair_up(lhs_indices, rhs_indices, a_shape[:-2], b_shape[:-2], form, sorted_indices, a)
    out_shape = (*pairs.batch, a_shape[-2], b_shape[-1])
    if 0 in out_shape or a_shape[-1] == 0:
        return form.zeros(out_shape, dtype, a)
    first = form.rows(form.cast(form.dense(a), dtype), *a_shape[-2:])
    second = form.rows(form.either_way(b), *b_shape[-2:])
    result = form.verb("gather_mm")(first, second, pairs.lhs, pairs.rhs, pairs.sorted_indices)
    return form.back(result, out_shape)


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
