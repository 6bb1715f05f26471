"""Decoding steps of some sequences side by side: one token more of each, and the logits behind it.

A back end may record the launches of a step and play them again, and it may choose the tokens itself, so that it need
not wait for the host between two steps. Others run a pass for each step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class Draw:
    """How the tokens of a sequence are chosen: the likeliest where temperature is 0, else as
    `coterie.runtime.sampling` says. uniforms f64 in [0, 1): one for each token that may be drawn; top_k of 0 is all.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniforms: np.ndarray


class Steps(Protocol):
    """Steps of the sequences in some caches, until it is closed; nobody else may use the caches meanwhile."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits f32 [B, V] behind one more token of each sequence, on the host; may be overwritten by the next."""
        ...

    def tokens(self, ids: Sequence[int], draws: Sequence[Draw]) -> Iterator[list[int]] | None:
        """Endless lists of a token of each sequence, which is the next step's: the first step's tokens are `ids`. A
        token of -1 says that logits were not finite. When the iterator is closed, the caches have what was seen of it.

        None where the back end leaves the choice to the host.
        """
        ...

    def close(self) -> None:
        """The caches are their owners' again."""
        ...
