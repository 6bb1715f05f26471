"""Tokens that were read before, with their keys and values: a prompt that begins alike is not read from its start.

The common beginning is counted in tokens, exactly. A sliding window's ring that has wrapped no longer has what came
before its window, so such a model's cache can go back by some hundred tokens only; a prompt that leaves the common
beginning earlier is read from its start, and `note` says so.
"""

import copy
import threading
from collections.abc import Sequence
from pathlib import Path

from coterie.errors import RequestError
from coterie.models.architecture import Architecture
from coterie.runtime import prompt_file
from coterie.runtime.cache import CHUNK, KeyValueCache


class PromptCache:
    """What a model has read so far in one place; made by `Model.prompt_cache`, for that model alone.

    A generation takes it with all that it has, and leaves its own tokens in it; meanwhile others find it empty. Batches
    copy the common beginning and leave the cache as it is. note: what became of it when it was last used.
    """

    def __init__(self, architecture: Architecture, model: str, chunk: int | None = None) -> None:
        """`model` is the fingerprint of the model that the keys and values are from, `chunk` how many tokens are best
        read together, if that matters.
        """
        self.model = model
        self.note = "not used yet"
        self._architecture, self._chunk = architecture, chunk or CHUNK
        self._lock = threading.Lock()
        self._token_ids: tuple[int, ...] = ()
        self._cache: KeyValueCache | None = None

    def __repr__(self) -> str:
        return f"<PromptCache of {len(self.token_ids)} tokens, {self.nbytes:,} bytes>"

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens whose keys and values are here."""
        return self._token_ids

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        cache = self._cache
        return 0 if cache is None else cache.nbytes

    def save(self, path: str | Path) -> None:
        """Write it to the file at `path`, whole or not at all; `Model.prompt_cache(path)` reads it.

        `RequestError` for a cache with nothing in it, also while a generation has it; `CheckpointError` where the file
        cannot be written.
        """
        with self._lock:
            cache, token_ids = self._cache, self._token_ids
            if cache is None:
                raise RequestError(
                    "the prompt cache is empty, or a generation is using it; save it when one has ended",
                    code="request_cache",
                )
            prompt_file.write(Path(path), self.model, token_ids, cache)

    def load(self, path: str | Path) -> None:
        """Take over what `save` wrote to the file at `path`; `CheckpointError` for any other file."""
        token_ids, cache = prompt_file.read(Path(path), self._architecture, self.model, self._chunk)
        self.put(cache, token_ids)

    def take(self, prompt_ids: Sequence[int]) -> KeyValueCache:
        """The cache, gone back to its common beginning with the prompt, if not to none; nothing is left here.

        The last token of the prompt is never part of it: its pass gives the first logits.
        """
        with self._lock:
            cache, token_ids = self._cache, self._token_ids
            self._cache, self._token_ids = None, ()
        return self._common(cache, token_ids, prompt_ids)

    def fork(self, prompt_ids: Sequence[int]) -> KeyValueCache:
        """`take`, of a copy."""
        with self._lock:
            cache, token_ids = copy.deepcopy(self._cache), self._token_ids
        return self._common(cache, token_ids, prompt_ids)

    def put(self, cache: KeyValueCache, token_ids: Sequence[int]) -> None:
        """Hold this cache, which has seen the first of these tokens, as many as its length says."""
        cache.rewind(cache.length)
        with self._lock:
            self._cache, self._token_ids = cache, tuple(token_ids[: cache.length])

    def _common(
        self, cache: KeyValueCache | None, token_ids: Sequence[int], prompt_ids: Sequence[int]
    ) -> KeyValueCache:
        n_common = common_length(token_ids, prompt_ids[:-1])
        if cache is not None and n_common and cache.can_rewind(n_common):
            cache.rewind(n_common)
            self.note = f"{n_common} of {len(prompt_ids)} tokens of the prompt were in the cache"
            return cache
        self.note = "nothing in the cache begins like the prompt"
        if n_common:
            self.note = (
                f"{n_common} tokens of the prompt had been read, and sliding windows have gone on to token "
                f"{len(token_ids)} since: the prompt is read from its start"
            )
        return KeyValueCache(self._architecture, chunk=self._chunk, limit=self._architecture.context_length)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens the two begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
