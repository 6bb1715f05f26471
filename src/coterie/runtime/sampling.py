"""From logits to a token id: greedy, or drawn after temperature, top-k, top-p and min-p, in float64."""

from collections.abc import Sequence

import numpy as np

from coterie.errors import NumericError
from coterie.models.steps import Draw
from coterie.runtime.logprobs import TokenLogprob, logprob_of
from coterie.runtime.penalties import Penalties
from coterie.runtime.request import Request


class Sampler:
    """Picks the tokens of one text; two samplers with the same seed pick the same tokens from the same logits.

    logprobs: one record for each token picked, if the request asks for them.
    """

    def __init__(self, request: Request, prompt_ids: Sequence[int] = ()) -> None:
        """`prompt_ids` are the tokens before the text, which a repetition penalty counts."""
        self._request = request
        self._penalties = Penalties(request, prompt_ids)
        self._random = np.random.Generator(np.random.PCG64(request.seed))
        self._uniforms = np.empty(0)
        self.logprobs: list[TokenLogprob] = []

    def pick(self, logits: np.ndarray) -> int:
        """The next token's id for logits f32 [V]. NaN or infinity among them is a `NumericError`, never a token."""
        check_finite(logits)
        scores = self._penalties.apply(logits)
        token_id = int(np.argmax(scores)) if self._request.temperature == 0.0 else self._draw(scores)
        self._uniforms = self._uniforms[1:]
        self._penalties.take(token_id)
        if self._request.logprobs is not None:
            self.logprobs.append(logprob_of(logits, token_id, self._request.logprobs))
        return token_id

    def draw(self, n: int) -> Draw | None:
        """How somebody else would pick the next n tokens as this would; None where it takes more than that to know."""
        request = self._request
        if self._penalties.are_asked or request.logprobs is not None:
            return None
        uniforms = self._ahead(n) if request.temperature > 0.0 else np.empty(0)
        return Draw(request.temperature, request.top_k, request.top_p, request.min_p, uniforms)

    def accept(self, token_id: int) -> None:
        """Somebody else has picked `token_id`; -1 if logits were not finite, which is a `NumericError`."""
        if token_id < 0:
            raise _not_finite("logits of a step")
        self._uniforms = self._uniforms[1:]

    def _ahead(self, n: int) -> np.ndarray:
        """The next n numbers that draws take: the same ones however many are looked at ahead."""
        missing = n - len(self._uniforms)
        if missing > 0:
            self._uniforms = np.concatenate((self._uniforms, self._random.random(missing)))
        return self._uniforms[:n]

    def _draw(self, scores: np.ndarray) -> int:
        ids, shares = candidates(scores, self._request)
        sums = np.cumsum(shares)
        place = int(np.searchsorted(sums, self._ahead(1)[0] * sums[-1], side="right"))
        return int(ids[min(place, len(ids) - 1)])


def check_finite(logits: np.ndarray) -> None:
    """`NumericError` where logits [..., V] are not all finite."""
    bad = logits.size - int(np.count_nonzero(np.isfinite(logits)))
    if bad:
        raise _not_finite(f"{bad} of {logits.size} logits")


def _not_finite(what: str) -> NumericError:
    return NumericError(
        f"{what} are NaN or infinite, expected finite numbers; the weights are damaged, or the activations overflowed",
        code="logits_not_finite",
    )


def candidates(logits: np.ndarray, request: Request) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn and their unnormalised shares; among equal logits the lower ids come first.

    In this order, as in transformers: temperature; the top_k likeliest; of those, the fewest likeliest ones that hold a
    share of top_p; of those, the ones at least min_p times as likely as the likeliest. -inf is never drawn.
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
    # The highest share is exp(0) = 1. A share of 0 goes in any case: rounding at the end of a draw could reach it.
    keep = np.flatnonzero((shares >= request.min_p) & (shares > 0.0))
    return ids[keep], shares[keep]


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
