"""Which tokens an expert takes: how often each, and how much more often than other experts take it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Order = Literal["count", "lift"]


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A token at an expert: it went there n times of the `of` times that it occurs.

    lift: (n / of) divided by the share of all tokens that the expert takes; 1 is no preference.
    """

    token: int
    n: int
    of: int
    lift: float


class TokenTable:
    """How often each token went to each expert of a layer; only pairs that occur are held."""

    def __init__(self, tokens: np.ndarray, ids: np.ndarray, counts: np.ndarray) -> None:
        """tokens: [T]; ids: [T, k]; counts: [E], the tokens of each expert."""
        self._vocabulary, place, self._totals = np.unique(tokens, return_inverse=True, return_counts=True)
        n_words = len(self._vocabulary)
        keys = ids.astype(np.int64) * n_words + place.reshape(-1, 1)
        kept, self._n = np.unique(keys, return_counts=True)
        self._words = kept % n_words
        self._begins = np.searchsorted(kept // n_words, np.arange(len(counts) + 1))
        self._share = counts / len(tokens)

    def totals(self) -> np.ndarray:
        """Tokens of each expert, [E], added up from the table."""
        return np.diff(np.concatenate(([0], np.cumsum(self._n)))[self._begins])

    def top(self, expert: int, by: Order, limit: int, least: int = 1) -> list[TokenCount]:
        """The expert's first `limit` tokens by count or by lift; for lift, tokens that occur `least` times or more.

        Lifts of rare tokens are chance, so they need `least`. Equal ones: the more frequent first, then the lower id.
        """
        part = slice(self._begins[expert], self._begins[expert + 1])
        words, n = self._words[part], self._n[part]
        of = self._totals[words]
        lift = n / of / self._share[expert] if len(n) else np.zeros(0)
        first, second = (n, lift) if by == "count" else (lift, n)
        order = np.lexsort((words, -second, -first))
        if by == "lift":
            order = order[of[order] >= least]
        return [
            TokenCount(int(self._vocabulary[words[i]]), int(n[i]), int(of[i]), float(lift[i])) for i in order[:limit]
        ]
