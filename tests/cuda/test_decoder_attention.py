"""Attention of the decoder on a GPU: heads made, kept in caches, and met, against the verbs in float64.

The bound for stores in f32 is that of the parity tests. Those in bf16 round queries, keys, values and shares to 8 bits:
four roundings of at most 2^-9 each, of which the worst row may have all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coterie.models.architecture import Attention, Rope
from coterie.models.grouped import HeadWeights, attend_rows
from coterie.models.rows import rows_of
from coterie.runtime.cache import LayerStore
from models.plain_backend import PlainBackend

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

BOUNDS = {"exact": 1e-5, "default": 4 * 2.0**-9}
ROPE = Rope(tuple(float(np.float32(1e4 ** -(i / 8))) for i in range(8)))
PLAIN = Attention(n_heads=4, n_kv_heads=2, head_dim=16, rope=ROPE, scale=0.25)
WINDOW = replace(PLAIN, window=9)

CASES: dict[str, tuple[Attention, dict[str, bool]]] = {
    "plain": (PLAIN, {}),
    "sliding window with sinks": (WINDOW, {"sinks": True}),
    "neighbours are pairs": (replace(PLAIN, rope=replace(ROPE, interleaved=True, amplitude=1.5)), {}),
    "part of a head turns, heads of 20": (replace(PLAIN, head_dim=20), {}),
    "limits, no norms": (replace(PLAIN, clip=0.7), {"norms": False}),
    "values are normed, one key-value head for 17": (
        replace(PLAIN, n_heads=17, n_kv_heads=1, normalize_values=True),
        {},
    ),
    "a norm over all heads, heads of 80": (replace(PLAIN, head_dim=80, n_heads=2, norm_span="projection"), {}),
}
ALONE = [[12], [1], [3], [1]]
TOGETHER = [[1, 8, 3], [1, 1, 1], [2, 0, 9]]
"""How many tokens each sequence brings in each pass; 0 leaves it out."""


class Cache:
    """The cache of a decoder of one layer."""

    def __init__(self, spec: Attention, limit: int) -> None:
        self.layers = [LayerStore(spec.n_kv_heads, spec.head_dim, spec.head_dim, limit)]
        self.length = 0

    def reserve(self, n_tokens: int, make: Any, layers: Any) -> bool:
        assert list(layers) == [0]
        return self.layers[0].reserve(n_tokens, make)


class Comparison:
    """The same rows through this back end and through the float64 one, each with caches of its own."""

    def __init__(
        self, rng: np.random.Generator, spec: Attention, precision: str, *, norms: bool = True, sinks: bool = False
    ) -> None:
        from coterie.backends.cuda.decoder import verbs

        self.rng, self.spec, self.verbs, self.plain = rng, spec, verbs(precision), PlainBackend()
        widths = (spec.n_heads, spec.n_kv_heads) if spec.norm_span == "projection" else (1, 1)
        q_norm, k_norm = (self.numbers(n * spec.head_dim) if norms else None for n in widths)
        self.vectors = HeadWeights(q_norm, k_norm, self.numbers(spec.n_heads) if sinks else None)
        self.frequencies = {spec.rope: np.array(spec.rope.frequencies, np.float32)}

    def numbers(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def on_device(self, array: np.ndarray | None) -> Any:
        return None if array is None else torch.from_numpy(array).to(self.verbs.device)

    def worst_row(self, plan: Sequence[Sequence[int]]) -> float:
        """The largest relative L2 error of a row."""
        limit = sum(map(max, plan)) if self.spec.window is None else self.spec.window + max(map(max, plan)) - 1
        ours, theirs = ([Cache(self.spec, limit) for _ in plan[0]] for _ in range(2))
        return max(self.error_of(counts, ours, theirs) for counts in plan)

    def error_of(self, counts: Sequence[int], ours: list[Cache], theirs: list[Cache]) -> float:
        spec, n_rows = self.spec, sum(counts)
        kv = spec.n_kv_heads * spec.head_dim
        projected = [self.numbers(n_rows, size) for size in (spec.n_heads * spec.head_dim, kv, kv)]
        vectors = HeadWeights(
            *(self.on_device(v) for v in (self.vectors.query_norm, self.vectors.key_norm, self.vectors.sinks))
        )
        q, k, v = map(self.on_device, projected)
        found = attend_rows(self.verbs, q, (k, v), spec, vectors, self.rows(self.verbs, counts, ours), 0, 1e-6)
        q, k, v = (x.astype(np.float64) for x in projected)
        rows = self.rows(self.plain, counts, theirs)
        exact = attend_rows(self.plain, q, (k, v), spec, self.vectors, rows, 0, 1e-6)
        for caches in (ours, theirs):
            for cache, count in zip(caches, counts, strict=True):
                cache.length += count
        difference = np.linalg.norm(found.wide.float().cpu().numpy() - exact, axis=-1)
        return float((difference / np.linalg.norm(exact, axis=-1)).max())

    def rows(self, backend: Any, counts: Sequence[int], caches: list[Cache]) -> Any:
        sequences = [([0] * count, cache) for count, cache in zip(counts, caches, strict=True) if count]
        return rows_of(backend, sequences, self.frequencies)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, "exact") for name in CASES]
    + [(name, "default") for name in ("plain", "sliding window with sinks", "limits, no norms")],
)
def test_prompts_steps_and_both_together(rng: np.random.Generator, name: str, precision: str) -> None:
    spec, options = CASES[name]
    for plan in (ALONE, TOGETHER):
        assert 0 < Comparison(rng, spec, precision, **options).worst_row(plan) < BOUNDS[precision]


@pytest.mark.parametrize("programs", [1, 2, 1024])
def test_positions_that_many_programs_share(
    rng: np.random.Generator, programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More keys than one program of a step meets at a time, up to and around the borders of its blocks."""
    monkeypatch.setattr("coterie.backends.cuda.decoder.shapes._PROGRAMS_AT_ONCE", programs)
    spec = replace(PLAIN, n_heads=2, n_kv_heads=1)
    assert Comparison(rng, spec, "exact").worst_row([[14], *[[1]] * 4, [27], *[[1]] * 4]) < BOUNDS["exact"]


@pytest.mark.parametrize(("programs", "splits"), [(8, 1), (16, 2), (64, 8)])
def test_rows_together_have_fewer_shares(
    rng: np.random.Generator, programs: int, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coterie.backends.cuda.decoder import shapes

    monkeypatch.setattr(shapes, "_PROGRAMS", programs)
    assert shapes.step_shape(16, 2, 2, torch.float32, n_together=3).n_splits == splits
    assert Comparison(rng, PLAIN, "exact").worst_row([[40, 1, 20], *[[1, 1, 1]] * 2]) < BOUNDS["exact"]


HALVES = replace(
    PLAIN,
    n_heads=6,
    head_dim=128,
    rope=Rope(tuple(float(np.float32(1e4 ** -(i / 64))) for i in range(64))),
    scale=1 / 32,
)
"""Scores near 1: what is lost of queries and keys is not multiplied by more."""

PROMPTS: dict[str, tuple[Attention, dict[str, bool]]] = {
    "plain": (HALVES, {}),
    "a window with sinks, which wraps": (replace(HALVES, n_heads=5, n_kv_heads=1, window=140), {"sinks": True}),
    "limits, no norms, a window of one": (replace(HALVES, n_heads=2, clip=0.7, window=1), {"norms": False}),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_on_hopper(hopper: None, name: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 128 keys that are whole, cut off, and behind a window; rows around the borders of tiles."""
    from coterie.backends.cuda.decoder import prompt

    del hopper
    spec, options = PROMPTS[name]
    served: list[int] = []
    attend = prompt.attend

    def counted(*arguments: Any) -> None:
        served.append(1)
        attend(*arguments)

    monkeypatch.setattr(prompt, "attend", counted)
    # Mixed values of more than 64 rows are rounded, too.
    for plan in ([[42], [86], [1], [129]], [[43, 1, 300], [1, 1, 1], [2, 0, 200]]):
        assert 0 < Comparison(rng, spec, "default", **options).worst_row(plan) < BOUNDS["default"] + 2.0**-9
    assert len(served) == 8


def test_a_record_of_a_few_rows_more_has_the_shares_of_a_pass() -> None:
    from coterie.backends.cuda.decoder.shapes import step_shape
    from coterie.backends.cuda.decoder.steps import rows_for

    for n_rows in range(1, 130):
        shapes = {step_shape(128, 4, 8, torch.bfloat16, n).n_splits for n in (n_rows, rows_for(n_rows))}
        assert len(shapes) == 1


@pytest.mark.parametrize("programs", [6, 1024])
def test_a_row_of_a_step_has_the_bits_that_it_has_alone(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many splits a program takes: of 6 programs each of the rows alone has three, and together one."""
    from coterie.backends.cuda.decoder import verbs

    monkeypatch.setattr("coterie.backends.cuda.decoder.shapes._PROGRAMS_AT_ONCE", programs)
    backend, spec = verbs().row_by_row, replace(WINDOW, n_heads=8)
    frequencies = {spec.rope: np.array(spec.rope.frequencies, np.float32)}
    width, kv = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    lengths = (1, 5, 20)

    def run(which: list[int]) -> list[np.ndarray]:
        caches, made = [Cache(spec, 28) for _ in which], []  # type: ignore[operator]
        for counts in ([lengths[i] for i in which], [1] * len(which)):
            rows = rows_of(backend, [([0] * n, c) for n, c in zip(counts, caches, strict=True)], frequencies)  # type: ignore[list-item]
            parts = [
                np.random.default_rng([i, n]).standard_normal((n, width + 2 * kv))
                for i, n in zip(which, counts, strict=True)
            ]
            x = torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(backend.device)
            new = (x[:, width : width + kv], x[:, width + kv :])
            out = attend_rows(backend, x[:, :width], new, spec, HeadWeights(None, None, None), rows, 0, 1e-6)
            for cache, n in zip(caches, counts, strict=True):
                cache.length += n
            made.append(out.wide.cpu().numpy())
        return list(made[1])

    together = run([0, 1, 2])
    for index in range(3):
        assert np.array_equal(run([index])[0], together[index])


def test_a_row_that_is_none_gives_zeros_and_writes_nothing() -> None:
    from coterie.backends.cuda.decoder import verbs

    backend, frequencies = verbs("exact"), {PLAIN.rope: np.array(PLAIN.rope.frequencies, np.float32)}
    cache = Cache(PLAIN, 4)
    rows = rows_of(backend, [([0], cache)], frequencies)  # type: ignore[list-item]
    rows.positions.fill_(-1)  # type: ignore[attr-defined]
    rows.stores[0].zero_()  # type: ignore[attr-defined]
    x = torch.ones((1, 64), device=backend.device)
    vectors = HeadWeights(None, None, None)
    assert not attend_rows(backend, x, (x[:, :32], x[:, :32]), PLAIN, vectors, rows, 0, 1e-6).wide.any()
