"""Several generations side by side: each decoding step is one pass, which reads the weights once for all of them.

A text takes a seat when one is free and leaves it when it ends. It reads its prompt by itself, in the parts that it
would have alone, and a step computes each row as if it were alone: so every text is what it would be by itself, to the
bit, whoever sits beside it.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coterie.models.decoder import Decoder
from coterie.runtime.cache import KeyValueCache
from coterie.runtime.decoding import Decoding
from coterie.runtime.generation import Continuation, FinishReason, Generation, cache_for, read_prompt
from coterie.runtime.prompt_cache import PromptCache

MAX_BATCH_SIZE = 8
"""Texts side by side unless a caller says otherwise."""

MAX_SEATS = 4096
"""More has no use: a step's time then grows with every seat."""


@dataclass(frozen=True, slots=True)
class BatchPiece:
    """Some more of the text at `index` among the prompts; finish_reason is None until the text ends.

    The text is empty only where it ended without another character.
    """

    index: int
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class _Seat:
    index: int
    text: Continuation
    cache: KeyValueCache


class BatchStream:
    """Generations under way: iterate over it once for pieces of any of the texts, as they come.

    `generations` tells at any time what has been made, in the order of the prompts.
    """

    def __init__(
        self,
        decoder: Decoder,
        texts: Sequence[Continuation],
        max_batch_size: int,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self._decoder = decoder
        self._texts = texts
        self._max_batch_size = max_batch_size
        self._prompt_cache = prompt_cache
        self._running = self._run()

    def __iter__(self) -> Iterator[BatchPiece]:
        return self._running

    @property
    def generations(self) -> list[Generation]:
        """What has been made so far; after the last piece, the whole texts."""
        return [text.generation for text in self._texts]

    def _run(self) -> Iterator[BatchPiece]:
        requested, decoder = time.perf_counter(), self._decoder.row_by_row()
        waiting, seats = deque(enumerate(self._texts)), list[_Seat]()
        while waiting or seats:
            while waiting and len(seats) < self._max_batch_size:
                index, text = waiting.popleft()
                text.begin(requested)
                seat = _Seat(index, text, self._cache(text))
                logits = read_prompt(self._decoder, text, seat.cache)
                yield from _pieces([seat], [text.take(logits[0])])
                if text.finish_reason is None:
                    seats.append(seat)
            if seats:
                yield from _steps(decoder, seats)
                seats = [seat for seat in seats if seat.text.finish_reason is None]

    def _cache(self, text: Continuation) -> KeyValueCache:
        shared = self._prompt_cache
        return cache_for(self._decoder, text) if shared is None else shared.fork(text.prompt_ids)


def _steps(decoder: Decoder, seats: Sequence[_Seat]) -> Iterator[BatchPiece]:
    """Steps of the texts in their seats, until the first of them ends."""
    decoding = Decoding(decoder, [seat.text for seat in seats], [seat.cache for seat in seats])
    try:
        while all(seat.text.finish_reason is None for seat in seats):
            yield from _pieces(seats, decoding.take())
    finally:
        decoding.close()


def _pieces(seats: Sequence[_Seat], pieces: Sequence[str]) -> Iterator[BatchPiece]:
    """What has come of each seat's text, where something has."""
    for seat, text in zip(seats, pieces, strict=True):
        seat.text.cache_nbytes = seat.cache.nbytes
        piece = BatchPiece(seat.index, text, seat.text.finish_reason)
        if piece.text or piece.finish_reason is not None:
            yield piece
