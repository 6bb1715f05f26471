"""What a pass over several tokens costs beside a pass over one: of one text (a draft to verify), and of several texts.

    python scripts/several_tokens.py [layers] [rounds]

Qwen3-30B-A3B's dimensions, random 4-bit weights, random tokens behind 64 others, so every token picks its own experts.
Passes of all kinds take turns; printed are medians, and for passes of one text the time of all 48 layers, which is that
of the measured ones times their number, and of the head once.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import numpy as np

from coterie.bench.real_models import REAL_MODELS
from coterie.bench.shapes import FORMATS
from coterie.bench.subjects import from_shape
from coterie.models.decoder import Decoder, Segment
from coterie.runtime.cache import KeyValueCache

N_BEFORE = 64
N_TOKENS = (1, 2, 3, 4, 5, 8)
N_TEXTS = (1, 2, 4, 8, 16)


class Passes:
    """Passes of one decoder, each timed where it is made."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.steps = decoder, decoder.row_by_row()
        self.rng = np.random.default_rng(0)
        self.caches = [self.cache() for _ in range(max(N_TEXTS))]
        self.seconds: dict[tuple[str, int], list[float]] = {}

    def ids(self, count: int) -> list[int]:
        """Random tokens."""
        return list(map(int, self.rng.integers(0, self.decoder.architecture.vocab_size, count)))

    def cache(self) -> KeyValueCache:
        """A cache with random tokens in it."""
        cache = KeyValueCache(self.decoder.architecture, chunk=N_BEFORE, limit=2 * N_BEFORE)
        self.decoder.hidden(self.ids(N_BEFORE), cache)
        return cache

    def time(self, kind: str, count: int, run: Callable[[], object]) -> None:
        """Run it, keep its time, and forget the tokens that it read."""
        started = time.perf_counter()
        run()
        self.seconds.setdefault((kind, count), []).append(time.perf_counter() - started)
        for cache in self.caches:
            cache.rewind(N_BEFORE)

    def round(self) -> None:
        """One pass of each kind."""
        for count in N_TOKENS:
            ids = self.ids(count)
            self.time("layers", count, lambda ids=ids: self.decoder.hidden(ids, self.caches[0]))  # type: ignore[misc]
            hidden = self.decoder.hidden(ids, self.caches[0])
            self.time("head", count, lambda hidden=hidden: self.decoder.logits(hidden))  # type: ignore[misc]
        for count in N_TEXTS:
            parts = [Segment(self.ids(1), cache) for cache in self.caches[:count]]
            self.time("texts", count, lambda parts=parts: self.steps.logits(self.steps.hidden_of(parts)))  # type: ignore[misc]

    def median(self, kind: str, count: int) -> float:
        """Seconds, without the first round."""
        return median(self.seconds[kind, count][1:])


def main(n_layers: int = 6, n_rounds: int = 10) -> None:
    """Measure and print."""
    model = REAL_MODELS["qwen3-30b-a3b"]
    passes = Passes(from_shape(model, n_layers, FORMATS["4bit"], "4bit").decoder)
    for _ in range(1 + n_rounds):
        passes.round()
    whole = {n: passes.median("layers", n) / n_layers * model.n_layers + passes.median("head", n) for n in N_TOKENS}
    for n in N_TOKENS:
        print(f"{n} tokens of a text: {1e3 * whole[n]:.1f} ms for 48 layers, {whole[n] / whole[1]:.2f} times one")
    for n in N_TEXTS:
        seconds = passes.median("texts", n)
        print(f"{n} texts: {1e3 * seconds:.1f} ms for {n_layers} layers and the head, {n / seconds:.0f} tokens/s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
