"""This library's side of `coterie bench model`: a decoder, prompts and steps, and the bytes that a step reads."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coterie.bench.measure import Clock
from coterie.models.architecture import Architecture
from coterie.models.decoder import Decoder
from coterie.models.description import Description
from coterie.runtime.cache import CHUNK, KeyValueCache
from coterie.runtime.generation import prefill
from coterie.runtime.memory import peak_memory

_F32 = 4


@dataclass(slots=True)
class Subject:
    """A decoder and what is known of its weights; `title` names it in the report.

    checkpoint: the folder it came from, None for random weights.
    """

    title: str
    decoder: Decoder
    description: Description
    checkpoint: Path | None = None
    clock: Clock = time.perf_counter

    def prefill(self, ids: Sequence[int]) -> float:
        """Seconds from a prompt's ids to the logits of its last token, with a fresh cache."""
        return self._timed_prefill(ids, self._cache(len(ids)))

    def decode(self, prompt: Sequence[int], ids: Sequence[int]) -> tuple[float, list[float]]:
        """Seconds of the prompt's pass, and of each step when `ids` follow one by one; both end with logits."""
        cache = self._cache(len(prompt) + len(ids))
        first = self._timed_prefill(prompt, cache)
        steps, taken = self.decoder.steps([cache]), []
        for token_id in ids:
            start = self.clock()
            steps.logits([token_id])
            taken.append(self.clock() - start)
        steps.close()
        return first, taken

    def last_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits f32 [V] that follow `ids`."""
        return np.array(prefill(self.decoder, ids, self._cache(len(ids)))[0], np.float32)

    def peak_memory(self) -> int:
        """Bytes of this process at its fullest moment."""
        return peak_memory()

    def bytes_per_token(self, n_before: int, n_steps: int) -> float:
        """Bytes read for a token, in the mean of `n_steps` steps after `n_before` tokens: weights, keys and values."""
        architecture = self.decoder.architecture
        cached = [cache_bytes(architecture, n_before + step + 1) for step in range(n_steps)]
        return self.description.nbytes_per_token + sum(cached) / n_steps

    def _cache(self, limit: int) -> KeyValueCache:
        chunk = self.decoder.store_traits.chunk or CHUNK
        return KeyValueCache(self.decoder.architecture, chunk=min(chunk, limit), limit=limit)

    def _timed_prefill(self, ids: Sequence[int], cache: KeyValueCache) -> float:
        start = self.clock()
        prefill(self.decoder, ids, cache)
        return self.clock() - start


def cache_bytes(architecture: Architecture, n_positions: int, itemsize: int = _F32) -> int:
    """Bytes of keys and values that the last of `n_positions` tokens attends to, in all layers; a number has `itemsize`
    bytes.
    """
    total = 0
    for layer in architecture.layers:
        attention = layer.attention
        seen = n_positions if attention.window is None else min(n_positions, attention.window)
        n_heads, key_dim, value_dim = attention.cached
        total += itemsize * seen * n_heads * (key_dim + value_dim)
    return total
