"""Prefill and decode: from a prompt's ids to a stream of text, one token at a time."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coterie.models.decoder import Decoder
from coterie.models.steps import Draw
from coterie.runtime.cache import CHUNK, KeyValueCache
from coterie.runtime.decoding import Decoding
from coterie.runtime.logprobs import TokenLogprob
from coterie.runtime.prompt_cache import PromptCache
from coterie.runtime.request import Request
from coterie.runtime.sampling import Sampler
from coterie.runtime.stopping import StopWatch
from coterie.runtime.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Generation:
    """What came of a prompt, or what has come of it so far.

    token_ids: the tokens made, with the one that ended the text and those of a stop string, which `text` leaves out.
    finish_reason: "stop" at an end-of-text token or a stop string, "length" at max_tokens or at the end of the context,
    None while there is more to come. timings in seconds: load (of the model), prefill (the prompt's pass), first_token
    (from the request to the first token) and decode (from the first token to the last). logprobs: one record for each
    token, if they were asked for. n_cached_tokens: tokens of the prompt that a prompt cache had and that were not read.
    cache_nbytes: bytes of the keys and values of the prompt and the text.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    n_prompt_tokens: int
    timings: dict[str, float]
    logprobs: tuple[TokenLogprob, ...] | None = None
    n_cached_tokens: int = 0
    cache_nbytes: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prompt's pass, without what a cache had; 0 before it is over."""
        return _rate(self.n_prompt_tokens - self.n_cached_tokens, self.timings["prefill"])

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
        hidden = decoder.last_hidden(chunk, cache)
    if hidden is None:
        raise ValueError("prefill needs at least one token")
    return decoder.logits(hidden)


def chunks(ids: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """`ids` in runs of at most `size`."""
    return (ids[begin : begin + size] for begin in range(0, len(ids), size))


class Continuation:
    """One prompt on its way to a text: takes logits, picks tokens and hands on text, until it ends.

    It knows of no decoder and no cache, so it goes the same way alone and in a batch.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        request: Request,
        *,
        context_length: int,
        load_seconds: float = 0.0,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.n_cached_tokens = self.cache_nbytes = 0
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._context_length = context_length
        self._sampler = Sampler(request, prompt_ids)
        self._watch = StopWatch(request.stop)
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=request.skip_special_tokens)
        self._eos_ids = tokenizer.eos_ids
        self._pieces: list[str] = []
        self._timings = {"load": load_seconds, "prefill": 0.0, "first_token": 0.0, "decode": 0.0}
        self._requested = self._begun = self._first = 0.0

    @property
    def n_positions(self) -> int:
        """Tokens that a cache has to hold: the last one made is never fed back."""
        return min(len(self.prompt_ids) + self._request.max_tokens - 1, self._context_length)

    def begin(self, requested: float | None = None) -> None:
        """The prompt's pass begins now; it was asked for then (`time.perf_counter`), or now as well."""
        self._begun = time.perf_counter()
        self._requested = self._begun if requested is None else requested

    def take(self, logits: np.ndarray) -> str:
        """Pick the next token from its logits f32 [V]; the text of which it is certain now that it belongs here."""
        if not self.token_ids:
            self._timings["prefill"] = time.perf_counter() - self._begun
        return self._append(self._sampler.pick(logits))

    def draw(self) -> Draw | None:
        """How the next tokens are picked, for somebody who may do it; None where it needs the logits here."""
        return self._sampler.draw(self._request.max_tokens - len(self.token_ids))

    def accept(self, token_id: int) -> str:
        """`take`, of a token that somebody else has picked; a `NumericError` for -1, which says that nobody could."""
        self._sampler.accept(token_id)
        return self._append(token_id)

    def _append(self, token_id: int) -> str:
        self.token_ids.append(token_id)
        self._clock()
        ended = token_id in self._eos_ids
        piece = "" if ended else self._watch.feed(self._detokenizer.feed(token_id))
        if ended or self._watch.found is not None:
            self.finish_reason = "stop"
        elif self._is_full():
            self.finish_reason = "length"
        if self.finish_reason is not None:
            piece += self._watch.finish()
        if piece:
            self._pieces.append(piece)
        return piece

    @property
    def generation(self) -> Generation:
        """What has been made so far; once it has ended, the whole."""
        return Generation(
            text="".join(self._pieces),
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            n_prompt_tokens=len(self.prompt_ids),
            timings=dict(self._timings),
            n_cached_tokens=self.n_cached_tokens,
            cache_nbytes=self.cache_nbytes,
            logprobs=None if self._request.logprobs is None else tuple(self._sampler.logprobs),
        )

    def _clock(self) -> None:
        now = time.perf_counter()
        self._first = self._first or now
        self._timings["first_token"] = self._first - self._requested
        self._timings["decode"] = now - self._first

    def _is_full(self) -> bool:
        used = len(self.prompt_ids) + len(self.token_ids)
        return len(self.token_ids) == self._request.max_tokens or used >= self._context_length


class Stream:
    """A generation under way: iterate over it once for its pieces of text, and look at `generation` at any time."""

    def __init__(self, decoder: Decoder, continuation: Continuation, prompt_cache: PromptCache | None = None) -> None:
        self._decoder = decoder
        self._continuation = continuation
        self._prompt_cache = prompt_cache
        self._running = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._running

    @property
    def generation(self) -> Generation:
        """What has been made so far; after the last piece, the whole."""
        return self._continuation.generation

    def close(self) -> None:
        """End it here; a prompt cache gets back what has been read."""
        self._running.close()

    def _run(self) -> Generator[str, None, None]:
        """Pieces of text, none of them empty, as soon as it is certain that they belong to it."""
        text, kept = self._continuation, self._prompt_cache
        text.begin()
        cache = cache_for(self._decoder, text) if kept is None else kept.take(text.prompt_ids)
        decoding = None
        try:
            piece = text.take(read_prompt(self._decoder, text, cache)[0])
            while True:
                if piece:
                    yield piece
                if text.finish_reason is not None:
                    return
                decoding = decoding or Decoding(self._decoder, [text], [cache])
                (piece,) = decoding.take()
        finally:
            if decoding is not None:
                decoding.close()
            text.cache_nbytes = cache.nbytes
            if kept is not None:
                kept.put(cache, [*text.prompt_ids, *text.token_ids])


def cache_for(decoder: Decoder, text: Continuation) -> KeyValueCache:
    """An empty cache for a prompt and what is to follow it."""
    chunk = min(decoder.store_traits.chunk or CHUNK, len(text.prompt_ids))
    return KeyValueCache(decoder.architecture, chunk=chunk, limit=text.n_positions)


def read_prompt(decoder: Decoder, text: Continuation, cache: KeyValueCache) -> np.ndarray:
    """`prefill` of what the cache does not have of the prompt yet."""
    text.n_cached_tokens = cache.length
    logits = prefill(decoder, text.prompt_ids[cache.length :], cache)
    text.cache_nbytes = cache.nbytes
    return logits
