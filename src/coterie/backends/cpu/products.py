"""The verbs of matrix products: what `ops` asks for, along rows (`linear`, `gathered`) or `columns`."""

import numpy as np

from coterie.backends.cpu.columns import multiply_columns
from coterie.backends.cpu.gathered import gathered
from coterie.backends.cpu.linear import linear
from coterie.backends.cpu.matrix import matrix_for, matrix_of
from coterie.formats import Packed


def quantized_matmul(x: np.ndarray, packed: Packed, transpose: bool) -> np.ndarray:
    """x [R, K] @ w.T for w packed [N, K] (or x @ w for transpose=False): x's dtype."""
    if transpose:
        product = linear(x, matrix_for(packed))
    else:
        product = multiply_columns(x, packed, np.arange(len(x)), np.zeros(len(x), np.int64))
    return product.astype(x.dtype, copy=False)


def gather_qmm(
    x: np.ndarray, packed: Packed, lhs: np.ndarray, rhs: np.ndarray, transpose: bool, _sorted_indices: bool
) -> np.ndarray:
    """x [B, M, K][lhs] times packed [E, N, K][rhs]: [R, M, N] in x's dtype."""
    n_tokens = x.shape[1]
    rows, experts = _spread(lhs, rhs, n_tokens)
    flat = x.reshape(-1, x.shape[-1])
    if not transpose:
        out = multiply_columns(flat, packed, rows, experts)
    else:
        out = gathered(flat, matrix_for(packed), rows, experts)
    return out.reshape(len(lhs), n_tokens, -1).astype(x.dtype, copy=False)


def gather_mm(a: np.ndarray, b: np.ndarray, lhs: np.ndarray, rhs: np.ndarray, _sorted_indices: bool) -> np.ndarray:
    """a [B, M, K][lhs] @ b [E, K, N][rhs]: [R, M, N] in a's dtype. b is dense, or a dense array seen transposed."""
    n_tokens = a.shape[1]
    rows, experts = _spread(lhs, rhs, n_tokens)
    flat = a.reshape(-1, a.shape[-1])
    if b.strides[1] == b.itemsize:
        out = gathered(flat, matrix_of(b.swapaxes(1, 2)), rows, experts)
    else:
        out = multiply_columns(flat, b, rows, experts)
    return out.reshape(len(lhs), n_tokens, -1).astype(a.dtype, copy=False)


def matvec(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """weight [N, K] @ x [K] in x's dtype."""
    return linear(x[None], matrix_of(weight))[0].astype(x.dtype, copy=False)


def _spread(lhs: np.ndarray, rhs: np.ndarray, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The row of flattened activations, and the matrix, of each of the R * M result rows."""
    rows = lhs.astype(np.int64)[:, None] * n_tokens + np.arange(n_tokens)
    return rows.reshape(-1), np.repeat(rhs.astype(np.int64), n_tokens)
