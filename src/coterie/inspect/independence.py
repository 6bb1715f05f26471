"""What pairs of experts would be chosen together if nothing but their own loads and the number k ruled the choice.

A token chooses k different experts, so "independent" cannot mean p_i * p_j: with k of E that promises more pairs than k
experts can make. The right comparison is a draw of k different experts in which each has its own probability and
nothing else plays a part: the conditional Bernoulli law (Chen, Dempster and Liu, Biometrika 81, 1994),

    P(S) = product of w_i over S / e_k(w)       for every set S of k experts,

with weights w for which each expert's probability is the one that was seen. e_k is the elementary symmetric polynomial.
An expert that every token takes is in S for certain, and one that none takes never is.
"""

import numpy as np

_ROUNDS = 1000
"""A bound only: some ten rounds are enough for loads of any kind that has been met."""
_CLOSE = 1e-10
_HELD = 1 << 22
"""Numbers of a table that is held at a time."""


def expected_pairs(counts: np.ndarray, n_tokens: int, top_k: int) -> np.ndarray:
    """How many tokens would choose experts i and j together: f64 [E, E], symmetric, 0 on the diagonal.

    counts: int [E], the tokens of each expert, n_tokens * top_k in sum and each at most n_tokens. Each row of the
    result sums to counts[i] * (top_k - 1), as the row of the pairs that were seen does.
    """
    p = counts / n_tokens
    certain, free = counts == n_tokens, (counts > 0) & (counts < n_tokens)
    pairs = np.where(certain[:, None] | certain, np.outer(p, p), 0.0)
    k = top_k - int(certain.sum())
    if k >= 2:
        pairs[np.ix_(free, free)] = _pairs_of(p[free], k)
    np.fill_diagonal(pairs, 0.0)
    return pairs * n_tokens


def _pairs_of(p: np.ndarray, k: int) -> np.ndarray:
    """Probabilities [n, n] of pairs for experts with probabilities p [n], 0 < p < 1, k in sum, 2 <= k < n."""
    odds = p / (1 - p)
    w = odds.copy()
    for _ in range(_ROUNDS):
        without = _without_one(w[None], k - 1)[0]
        found = w * without / _polynomial(w, k)
        if np.abs(found - p).max() < _CLOSE:
            break
        w *= odds * (1 - found) / found
    size = max(1, _HELD // (len(w) * k))
    blocks = [np.arange(begin, min(begin + size, len(w))) for begin in range(0, len(w), size)]
    without_two = [_without_one(np.where(block[:, None] == np.arange(len(w)), 0.0, w), k - 2) for block in blocks]
    return np.outer(w, w) * np.concatenate(without_two) / _polynomial(w, k)  # type: ignore[no-any-return]


def _polynomial(w: np.ndarray, k: int) -> float:
    """e_k(w)."""
    return float(_prefixes(w[None], k)[-1, 0, k])


def _without_one(w: np.ndarray, k: int) -> np.ndarray:
    """e_k of each row of w [m, n] without its column j: [m, n]. Sums of positive terms only, so nothing cancels."""
    before, after = _prefixes(w, k), _prefixes(w[:, ::-1], k)[::-1]
    return np.einsum("jma,jma->mj", before[:-1], after[1:, :, ::-1])  # type: ignore[no-any-return]


def _prefixes(w: np.ndarray, k: int) -> np.ndarray:
    """e_0 ... e_k of the first j columns of w [m, n]: [n + 1, m, k + 1]."""
    m, n = w.shape
    out = np.zeros((n + 1, m, k + 1))
    out[0, :, 0] = 1
    for j in range(n):
        out[j + 1] = out[j]
        out[j + 1, :, 1:] += w[:, j, None] * out[j, :, :-1]
    return out
