"""Log-probabilities of generated tokens, by the model's own word.

They are the log-softmax of the logits as the model computes them, before bias, penalties, temperature and whatever
restricts the draw: log p[i] = z[i] - log(sum of exp(z)), natural logarithm, in float64. So they tell what the model
thinks of a token, whichever way the token was chosen, and the same text has the same log-probabilities at any
temperature.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log-probability of a generated token, and those of the likeliest tokens in its place.

    top: (token id, log-probability), the likeliest first, of equal ones the lower id first. The generated token is
    among them only if it is that likely.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def logprob_of(logits: np.ndarray, token_id: int, n: int) -> TokenLogprob:
    """What finite logits [V] say of `token_id` and of the `n` likeliest tokens, n from 0 to V."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    return TokenLogprob(token_id, float(scores[token_id]), _likeliest(scores, n))


def _likeliest(scores: np.ndarray, n: int) -> tuple[tuple[int, float], ...]:
    if n == 0:
        return ()
    border = np.partition(scores, scores.size - n)[scores.size - n]
    ids = np.flatnonzero(scores >= border)
    order = ids[np.argsort(-scores[ids], kind="stable")][:n]
    return tuple((int(i), float(scores[i])) for i in order)
