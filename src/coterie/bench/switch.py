"""`coterie bench switch`: from how many tokens on it pays to unpack weights into panels.

The product of a few tokens with packed rows has two ways: straight from the bytes, or through a panel of unpacked
weights that all tokens share. Each is compiled here with the limit between them forced to one side, past the disk cache
(whose key does not know the limit), and timed on stacks too large for any cache.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np

from coterie.backends.cpu import int16_product, isa
from coterie.backends.cpu import product as p
from coterie.backends.cpu.arithmetic import F32
from coterie.backends.cpu.gathered import gathered
from coterie.backends.cpu.matrix import PRODUCT, Matrix, matrix_of
from coterie.backends.cpu.pool import address_of
from coterie.bench.measure import Clock, Contest, Summary, run_rounds, summary, warm_up
from coterie.bench.shapes import FORMATS, Shape
from coterie.bench.weights import generator, random_packed

_PATHS = {"dot": 1 << 20, "panel": 0}


@dataclasses.dataclass(frozen=True, slots=True)
class SwitchRow:
    """Seconds of a matrix product by both ways; `ratio` is panel over dot, paired: above 1 the dot path wins."""

    format: str
    tokens: int
    dot: Summary
    panel: Summary
    ratio: Summary


@contextmanager
def _limit(module: Any, tokens: int) -> Iterator[None]:
    """Numba freezes the limit when it compiles."""
    before = module.DOT_TOKENS
    module.DOT_TOKENS = tokens
    try:
        yield
    finally:
        module.DOT_TOKENS = before


def _forced(matrix: Matrix, limit: int, kept: list[Any]) -> Matrix:
    layout = matrix.layout
    module = p if matrix.arithmetic is F32 else int16_product
    with _limit(module, limit):
        work = module.make_product(layout.key, layout)
        callback = numba.cfunc(p.SIGNATURE, nopython=True, error_model="numpy")(work)
    kept.append(callback)
    words = matrix.words.copy()
    words[PRODUCT] = callback.address
    return dataclasses.replace(matrix, words=words, at=address_of(words))


def run(
    shape: Shape,
    formats: Sequence[str],
    tokens: Sequence[int],
    repeats: int,
    seconds: float,
    progress: Callable[[str], None] = lambda _: None,
    clock: Clock = time.perf_counter,
) -> list[SwitchRow]:
    """A row for each format, precision and number of tokens: gate matrices of a few experts, so many tokens each."""
    rows = []
    for name in formats:
        progress(f"{shape.title} {name} on {isa.current().name}")
        rng = generator(19)
        packed = random_packed(rng, shape.n_experts, shape.intermediate, shape.hidden, FORMATS[name])
        kept: list[Any] = []
        for precision in ("default", "exact"):
            stack = matrix_of(packed, precision=precision)
            ways = {path: _forced(stack, limit, kept) for path, limit in _PATHS.items()}
            label = f"{name} {stack.arithmetic.name}"
            for count in tokens:
                rows.append(_row(shape, label, count, ways, repeats, seconds, clock))
    return rows


def _row(
    shape: Shape, name: str, count: int, ways: dict[str, Matrix], repeats: int, seconds: float, clock: Clock
) -> SwitchRow:
    rng = generator(23, count)
    x = rng.standard_normal((count, shape.hidden), np.float32)
    chosen = [rng.permutation(shape.n_experts)[: shape.top_k] for _ in range(16)]
    tokens = np.tile(np.arange(count), shape.top_k)

    def contest(path: str) -> Contest:
        def call(index: int) -> int:
            gathered(x, ways[path], tokens, np.repeat(chosen[index % len(chosen)], count))
            return 0

        return Contest(path, call)

    contests = [contest(path) for path in _PATHS]
    warm_up(contests)
    run_rounds(contests, lambda: 1.0, repeats, seconds, clock=clock)
    dot, panel = ([burst.seconds for burst in contest.bursts] for contest in contests)
    summaries = [summary(values) for values in (dot, panel, [b / a for a, b in zip(dot, panel, strict=True)])]
    if None in summaries:
        raise RuntimeError("; ".join(contest.failure or "" for contest in contests))
    return SwitchRow(name, count, *summaries)  # type: ignore[arg-type]
