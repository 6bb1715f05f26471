"""Steps of some texts side by side, whoever chooses their tokens.

Where a back end can, it does, and goes on before the host has seen the token; so the host must not need the logits: a
text with log-probabilities, penalties or biases has its tokens chosen here, and with it those beside it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from coterie.models.decoder import Decoder
from coterie.runtime.cache import KeyValueCache

if TYPE_CHECKING:
    from coterie.runtime.generation import Continuation


class Decoding:
    """Texts that have their first token, with their caches, until one of them ends or another joins them."""

    def __init__(self, decoder: Decoder, texts: Sequence["Continuation"], caches: Sequence[KeyValueCache]) -> None:
        self._texts = texts
        self._steps = decoder.steps(caches)
        draws = [draw for text in texts if (draw := text.draw()) is not None]
        all_may = len(draws) == len(texts)
        self._tokens = self._steps.tokens(self._last(), draws) if all_may else None

    def take(self) -> list[str]:
        """One more token of each text: the pieces of text that it makes certain."""
        if self._tokens is None:
            rows = self._steps.logits(self._last())
            return [text.take(row) for text, row in zip(self._texts, rows, strict=True)]
        return [text.accept(token_id) for text, token_id in zip(self._texts, next(self._tokens), strict=True)]

    def close(self) -> None:
        """The caches have what the texts have taken, and no more."""
        self._steps.close()

    def _last(self) -> list[int]:
        return [text.token_ids[-1] for text in self._texts]
