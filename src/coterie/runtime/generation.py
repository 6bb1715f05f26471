"""Prefill and decode: from a prompt's ids to a stream of text, one token at a time."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coterie.models.decoder import Decoder
from coterie.runtime.cache import KeyValueCache
from coterie.runtime.request import Request
from coterie.runtime.sampling import Sampler
from coterie.runtime.stopping import StopWatch
from coterie.runtime.tokenizer import Tokenizer

CHUNK = 512
"""Tokens of a prompt that pass through the decoder together: enough to use each expert's matrices for many rows."""

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of a prompt, or what has come of it so far.

    token_ids: the tokens made, with the one that ended the text and those of a stop string, which `text` leaves out.
    finish_reason: "stop" at an end-of-text token or a stop string, "length" at max_tokens or at the end of the context,
    None while there is more to come. timings in seconds: load (of the model), prefill (the prompt's pass), first_token
    (from the request to the first token) and decode (from the first token to the last).
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    n_prompt_tokens: int
    timings: dict[str, float]

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prompt's pass; 0 before it is over."""
        return _rate(self.n_prompt_tokens, self.timings["prefill"])

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding, without the first token, which belongs to the prompt's pass."""
        return _rate(len(self.token_ids) - 1, self.timings["decode"])


def _rate(n_tokens: int, seconds: float) -> float:
    return n_tokens / seconds if n_tokens > 0 and seconds > 0 else 0.0


def prefill(decoder: Decoder, ids: Sequence[int], cache: KeyValueCache) -> np.ndarray:
    """Pass `ids` through the decoder, a chunk at a time; returns the logits f32 [1, V] that follow the last one."""
    hidden = None
    for chunk in chunks(ids, cache.chunk):
        cache.check_room(len(chunk))
        hidden = decoder.hidden(chunk, cache)
    if hidden is None:
        raise ValueError("prefill needs at least one token")
    return decoder.logits(hidden[-1:])


def chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`ids` in runs of at most `size`."""
    return (ids[begin : begin + size] for begin in range(0, len(ids), size))


class Stream:
    """A generation under way: iterate over it once for its pieces of text, and look at `generation` at any time."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        request: Request,
        *,
        load_seconds: float = 0.0,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._request = request
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._finish_reason: FinishReason | None = None
        self._timings = {"load": load_seconds, "prefill": 0.0, "first_token": 0.0, "decode": 0.0}
        self._running = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._running

    @property
    def generation(self) -> Generation:
        """What has been made so far; after the last piece, the whole."""
        return Generation(
            text="".join(self._pieces),
            token_ids=tuple(self._token_ids),
            finish_reason=self._finish_reason,
            n_prompt_tokens=len(self._prompt_ids),
            timings=dict(self._timings),
        )

    def _run(self) -> Iterator[str]:
        """Pieces of text, none of them empty, as soon as it is certain that they belong to it."""
        watch, detokenizer = StopWatch(self._request.stop), self._tokenizer.detokenizer()
        for token_id in self._tokens():
            ended = token_id in self._tokenizer.eos_ids
            piece = "" if ended else watch.feed(detokenizer.feed(token_id))
            if ended or watch.found is not None:
                self._finish_reason = "stop"
            elif self._is_full():
                self._finish_reason = "length"
            if self._finish_reason is not None:
                piece += watch.finish()
            if piece:
                self._pieces.append(piece)
                yield piece
            if self._finish_reason is not None:
                return

    def _tokens(self) -> Iterator[int]:
        sampler, limit = Sampler(self._request), self._limit()
        started = time.perf_counter()
        cache = KeyValueCache(self._decoder.architecture, chunk=min(CHUNK, len(self._prompt_ids)), limit=limit)
        logits = prefill(self._decoder, self._prompt_ids, cache)
        self._timings["prefill"] = time.perf_counter() - started
        first = 0.0
        while True:
            token_id = sampler.pick(logits[0])
            self._token_ids.append(token_id)
            now = time.perf_counter()
            first = first or now
            self._timings["first_token"], self._timings["decode"] = first - started, now - first
            yield token_id
            logits = self._decoder.logits(self._decoder.hidden([token_id], cache))

    def _limit(self) -> int:
        """Tokens that the cache has to hold: the last one made is never fed back."""
        wanted = len(self._prompt_ids) + self._request.max_tokens - 1
        return min(wanted, self._decoder.architecture.context_length)

    def _is_full(self) -> bool:
        used = len(self._prompt_ids) + len(self._token_ids)
        return len(self._token_ids) == self._request.max_tokens or used >= self._decoder.architecture.context_length
