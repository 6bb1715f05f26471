"""From logits to a token id: greedy, or drawn after temperature, top-k and top-p, in float64."""

import numpy as np

from coterie.errors import NumericError
from coterie.runtime.request import Request


class Sampler:
    """Picks one token after another; two samplers with the same seed pick the same tokens from the same logits."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._random = np.random.Generator(np.random.PCG64(request.seed))

    def pick(self, logits: np.ndarray) -> int:
        """A token id for logits f32 [V]. NaN or infinity among them is a `NumericError`, never a token."""
        check_finite(logits)
        if self._request.temperature == 0.0:
            return int(np.argmax(logits))
        ids, shares = candidates(logits, self._request)
        sums = np.cumsum(shares)
        place = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])


def check_finite(logits: np.ndarray) -> None:
    """`NumericError` where logits [..., V] are not all finite."""
    bad = logits.size - int(np.count_nonzero(np.isfinite(logits)))
    if bad:
        raise NumericError(
            f"{bad} of {logits.size} logits are NaN or infinite, expected finite numbers; the weights are damaged, or "
            "the activations overflowed",
            code="logits_not_finite",
        )


def candidates(logits: np.ndarray, request: Request) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn and their unnormalised shares; among equal logits the lower ids come first.

    In this order: temperature; the top_k likeliest; of those, the fewest likeliest ones that hold a share of top_p.
    """
    scores = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        # A tiny temperature drives all but the highest to -inf, which is the greedy choice that it asks for.
        scores = (scores - scores.max()) / request.temperature
    ids = _top(scores, request.top_k)
    shares = np.exp(scores[ids])
    if request.top_p < 1.0:
        keep = _nucleus(shares, request.top_p)
        ids, shares = ids[keep], shares[keep]
    return ids, shares


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Ids of the k highest scores in rising order; all of them for k = 0."""
    if k == 0 or k >= scores.size:
        return np.arange(scores.size)
    border = np.partition(scores, scores.size - k)[scores.size - k]
    above = np.flatnonzero(scores > border)
    return np.sort(np.concatenate((above, np.flatnonzero(scores == border)[: k - above.size])))


def _nucleus(shares: np.ndarray, top_p: float) -> np.ndarray:
    """Places of the fewest highest shares that sum to top_p of the whole (Holtzman et al., 2020), in rising order."""
    total = shares.sum()
    # Whatever is below this holds less than 1 - top_p together, so the nucleus lies in the rest: far fewer to sort.
    likely = np.flatnonzero(shares >= (1.0 - top_p) * total / shares.size)
    order = likely[np.argsort(-shares[likely], kind="stable")]
    sums = np.cumsum(shares[order])
    count = int(np.searchsorted(sums, top_p * total, side="left")) + 1
    return np.sort(order[:count])
