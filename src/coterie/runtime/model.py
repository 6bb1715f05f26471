"""`Model`: a loaded checkpoint, ready to compute logits and to write text."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from coterie.errors import RequestError, UnsupportedError
from coterie.formats import Packed
from coterie.models.decoder import Decoder
from coterie.models.description import Description
from coterie.models.fingerprint import fingerprint
from coterie.models.observer import RoutingObserver
from coterie.runtime.batch import MAX_BATCH_SIZE, MAX_SEATS, BatchStream
from coterie.runtime.cache import CHUNK, KeyValueCache
from coterie.runtime.chat_template import ChatTemplate
from coterie.runtime.generation import Continuation, Generation, Stream, chunks
from coterie.runtime.memory import MemoryUse, check_memory, memory_use
from coterie.runtime.messages import Messages
from coterie.runtime.prompt_cache import PromptCache
from coterie.runtime.request import Options, check_encodable, checked, checked_ids, checked_integer
from coterie.runtime.sampling import check_finite
from coterie.runtime.tokenizer import Tokenizer


class Model:
    """A model in memory. It keeps no state between calls, so several threads may use one.

    config: the checkpoint's config.json as it is. tokenizer: text to token ids and back. chat_template: messages to
    text, or None for a model that has none.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        config: Mapping[str, Any],
        description: Description,
        chat_template: ChatTemplate | None = None,
        *,
        load_seconds: float = 0.0,
    ) -> None:
        """Made by `load`."""
        self.config = config
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._decoder = decoder
        self._description = description
        self._load_seconds = load_seconds

    def __repr__(self) -> str:
        about = self._description
        return (
            f"<Model {about.family}, {about.n_parameters:,} parameters, {about.n_active_parameters:,} of them active>"
        )

    def describe(self) -> Description:
        """Family, sizes, formats by layer, experts, parameters and bytes read for one token."""
        return self._description

    def memory(self) -> MemoryUse:
        """Bytes that this process takes, and how much of them are the model's weights, which are mapped, not copied."""
        parts = (weight.codes if isinstance(weight, Packed) else weight for weight in self._decoder.weights.values())
        mapped = (part.ctypes.data for part in parts if isinstance(part, np.ndarray))
        used = getattr(self._decoder.backend, "used_memory", None)
        return memory_use(self._description.nbytes, mapped, None if used is None else used())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the config and of a sample of every weight: tells models and quantisations apart."""
        return fingerprint(self.config, self._decoder.weights)

    def logits(self, token_ids: Sequence[int], *, observer: RoutingObserver | None = None) -> np.ndarray:
        """Logits f32 [T, vocab_size]: row t belongs to the token that follows token_ids[: t + 1].

        An `observer` sees the routing of each layer, in runs of consecutive tokens, and may put another in its place.
        `RequestError` for no ids, for ids outside of the vocabulary and for more than the context holds; `NumericError`
        for logits that are not finite.
        """
        architecture = self._decoder.architecture
        ids = checked_ids(token_ids, architecture.vocab_size, architecture.context_length)
        out = np.empty((len(ids), architecture.vocab_size), np.float32)
        for begin, hidden in self._passes(ids, observer):
            # A back end that takes longer runs need not hold the logits of all of it at once.
            for first in range(0, len(hidden), CHUNK):
                some = self._decoder.logits(hidden[first : first + CHUNK])
                out[begin + first : begin + first + len(some)] = some
        check_finite(out)
        return out

    def observe(self, token_ids: Sequence[int], observer: RoutingObserver) -> None:
        """Show `observer` the routing of each layer for these tokens, as `logits` would, without computing logits."""
        architecture = self._decoder.architecture
        ids = checked_ids(token_ids, architecture.vocab_size, architecture.context_length)
        self._check_memory(self._cache_bytes(len(ids)))
        for _ in self._passes(ids, observer):
            pass

    def _passes(self, ids: Sequence[int], observer: RoutingObserver | None) -> Iterator[tuple[int, Any]]:
        """(index of the first token, hidden states) of one run of tokens after the other."""
        cache = KeyValueCache(self._decoder.architecture, chunk=min(self._chunk, len(ids)), limit=len(ids))
        for chunk in chunks(ids, cache.chunk):
            yield cache.length, self._decoder.hidden(chunk, cache, observer)

    def prompt_cache(self, path: str | Path | None = None) -> PromptCache:
        """A cache for generations to share what their prompts begin with: `generate(prompt, cache=cache)`.

        It is empty, or what `PromptCache.save` wrote to the file at `path`. `CheckpointError` for a file of another
        model, or one that is damaged.
        """
        cache = PromptCache(self._decoder.architecture, self.fingerprint, self._decoder.store_traits.chunk)
        if path is not None:
            cache.load(path)
        return cache

    def generate(
        self, prompt: str | Sequence[int], *, cache: PromptCache | None = None, **options: Unpack[Options]
    ) -> Generation:
        """Continue `prompt`, a text or token ids, and return the whole. The arguments are those of `stream`."""
        stream = self.stream(prompt, cache=cache, **options)
        for _ in stream:
            pass
        return stream.generation

    def stream(
        self, prompt: str | Sequence[int], *, cache: PromptCache | None = None, **options: Unpack[Options]
    ) -> Stream:
        """Continue `prompt` in pieces of text; the stream's `generation` has the rest.

        options: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
        logit_bias, logprobs, seed and stop, as `coterie.runtime.request.Options` has them. By default it is greedy.

        The text ends before the first of the stop strings, at an end-of-text token, after max_tokens, or where the
        model's context ends. Special tokens that are spelled out in a text prompt stay text; give ids to place them.

        cache: what it has of the prompt's beginning is not read again, and it has this prompt and text afterwards.

        `RequestError` for arguments that cannot be met, `NumericError` for logits that are not finite,
        `CapacityError` for a cache that is larger than the machine's memory.
        """
        text = self._continuation(prompt, options)
        self._check_memory(self._cache_bytes(text.n_positions))
        return Stream(self._decoder, text, self._own(cache))

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        each: Sequence[Options] | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        cache: PromptCache | None = None,
        **options: Unpack[Options],
    ) -> list[Generation]:
        """Continue several prompts side by side, and return the whole texts in the order of the prompts.

        The arguments are those of `stream_batch`.
        """
        stream = self.stream_batch(prompts, each=each, max_batch_size=max_batch_size, cache=cache, **options)
        for _ in stream:
            pass
        return stream.generations

    def stream_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        *,
        each: Sequence[Options] | None = None,
        max_batch_size: int = MAX_BATCH_SIZE,
        cache: PromptCache | None = None,
        **options: Unpack[Options],
    ) -> BatchStream:
        """Continue several prompts side by side, in pieces of text as they come; its `generations` have the rest.

        At most max_batch_size texts are under way; the next one begins when one ends. The options, those of `stream`,
        hold for every prompt; `each` has options for the single prompts, which go before these. A text is the same that
        `stream` gives for its prompt and options, to the bit. A `cache` is read and not changed.

        The errors are those of `stream`, and say which prompt it is.
        """
        if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
            raise RequestError("prompts is no sequence of prompts, expected a list of them", code="request_prompts")
        if each is not None and len(each) != len(prompts):
            raise RequestError(
                f"each has options for {len(each)} prompts, expected {len(prompts)}, as many as there are prompts",
                code="request_each",
            )
        size = checked_integer("max_batch_size", max_batch_size, 1, MAX_SEATS, "seats of a batch")
        texts = []
        for index, prompt in enumerate(prompts):
            own = {} if each is None else each[index]
            try:
                if not isinstance(own, Mapping):
                    raise RequestError(f"each has {own!r}, expected a mapping of options", code="request_each")
                texts.append(self._continuation(prompt, {**options, **own}))
            except RequestError as error:
                raise RequestError(f"prompt {index}: {error}", code=error.code) from error
        self._check_memory(sum(sorted(self._cache_bytes(text.n_positions) for text in texts)[-size:]))
        return BatchStream(self._decoder, texts, size, self._own(cache))

    def chat(self, messages: Messages, *, cache: PromptCache | None = None, **options: Unpack[Options]) -> Generation:
        """The reply to a conversation; `messages` as in `apply_chat_template`, the others are those of `stream`."""
        return self.generate(self.apply_chat_template(messages), cache=cache, **options)

    def apply_chat_template(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids of a conversation, a prompt for `generate` and `stream`; arguments and errors of
        `ChatTemplate.render`, and an `UnsupportedError` for a model without a template.

        As in transformers, special tokens are recognised wherever they are spelled in the rendered text, so in the
        messages too; and nothing is put around the text, for the template itself writes the first token.
        """
        if self.chat_template is None:
            raise UnsupportedError(
                "this model has no chat template, expected chat_template.jinja or a chat_template in "
                "tokenizer_config.json; it continues texts: use generate or stream, or add its template",
                code="no_chat_template",
            )
        text = self.chat_template.render(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            variables=variables,
        )
        return self.tokenizer.encode(text, special_tokens=True, add_special_tokens=False)

    def _continuation(self, prompt: Any, options: Mapping[str, Any]) -> Continuation:
        architecture = self._decoder.architecture
        request = checked(options, vocab_size=architecture.vocab_size, context_length=architecture.context_length)
        return Continuation(
            self.tokenizer,
            self._prompt_ids(prompt),
            request,
            context_length=architecture.context_length,
            load_seconds=self._load_seconds,
        )

    def _own(self, cache: Any) -> PromptCache | None:
        if cache is not None and (not isinstance(cache, PromptCache) or cache.model != self.fingerprint):
            raise RequestError(
                f"cache is {cache!r}, expected a prompt cache of this model; make one with its `prompt_cache()`",
                code="request_cache",
            )
        return cache

    @property
    def _chunk(self) -> int:
        return self._decoder.store_traits.chunk or CHUNK

    def _cache_bytes(self, limit: int) -> int:
        itemsize = self._decoder.store_traits.itemsize
        return KeyValueCache.nbytes_for(self._decoder.architecture, chunk=self._chunk, limit=limit, itemsize=itemsize)

    def _check_memory(self, nbytes: int) -> None:
        check_memory(nbytes, self._decoder.store_traits.room)

    def _prompt_ids(self, prompt: Any) -> list[int]:
        architecture = self._decoder.architecture
        if isinstance(prompt, str):
            check_encodable("prompt", prompt)
            prompt = self.tokenizer.encode(prompt)
        ids = checked_ids(prompt, architecture.vocab_size, architecture.context_length, "prompt")
        if len(ids) == architecture.context_length:
            raise RequestError(
                f"the prompt has {len(ids)} tokens, which fill the model's context and leave no room for one more; "
                "shorten it",
                code="request_context",
            )
        return ids
