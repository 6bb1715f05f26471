"""What a request adds to the logits or takes from them before a token is chosen.

In this order, which is the one of transformers and of mlx-lm:

    logit bias           z[i] += bias[i]
    repetition penalty   z[i] = z[i] / p where z[i] > 0, else z[i] * p, for every token i of the prompt and the text
                         (Keskar et al., 2019)
    presence penalty     z[i] -= p for every token i of the text
    frequency penalty    z[i] -= p times the number of times that token i is in the text

The text is what has been generated: presence and frequency do not count the prompt, so that a model may speak of what
it was asked about. All sums and products are in float64.
"""

from collections.abc import Sequence

import numpy as np

from coterie.runtime.request import Request


class Penalties:
    """The biases and penalties of one request, and the tokens that they apply to. are_asked: whether there are any."""

    def __init__(self, request: Request, prompt_ids: Sequence[int] = ()) -> None:
        """`prompt_ids` are the tokens before the text."""
        self._request = request
        self._biased = np.array([token_id for token_id, _ in request.logit_bias], np.intp)
        self._biases = np.array([bias for _, bias in request.logit_bias], np.float64)
        shifts = (request.presence_penalty, request.frequency_penalty)
        self.are_asked = bool(request.logit_bias) or request.repetition_penalty != 1.0 or any(shifts)
        self._repeated = set(prompt_ids) if request.repetition_penalty != 1.0 else set()
        self._counts: dict[int, int] = {}

    def take(self, token_id: int) -> None:
        """`token_id` belongs to the text from now on."""
        self._repeated.add(token_id)
        self._counts[token_id] = self._counts.get(token_id, 0) + 1

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """The logits [V] with everything applied, as float64; -inf for a token that a bias bans.

        Where there is nothing to apply, the logits themselves.
        """
        if not self.are_asked:
            return logits
        scores = logits.astype(np.float64)
        scores[self._biased] += self._biases
        penalty = self._request.repetition_penalty
        if penalty != 1.0 and self._repeated:
            ids = np.fromiter(self._repeated, np.intp, len(self._repeated))
            scores[ids] = np.where(scores[ids] > 0, scores[ids] / penalty, scores[ids] * penalty)
        presence, frequency = self._request.presence_penalty, self._request.frequency_penalty
        if (presence or frequency) and self._counts:
            ids = np.fromiter(self._counts, np.intp, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float64, len(self._counts))
            scores[ids] -= presence + frequency * counts
        return scores
