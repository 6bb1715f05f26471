"""`Report`: what a trace says about the experts of every layer. All numbers are exact counts or f64 made of them.

load            tokens of each expert; relative to uniform: divided by T * k / E
weight          the sum of its routing weights
router entropy  in bits, the mean over tokens of what `LayerTrace.entropy` says: how undecided the router is
load entropy    in bits, of the shares counts / (T * k): how evenly the layer is used; log2 E if all are used alike
pairs           tokens that chose both experts, beside what the loads alone would give (`independence`)
"""

from dataclasses import dataclass, replace

import numpy as np

from coterie.errors import ArgumentError, CoterieError
from coterie.inspect.independence import expected_pairs
from coterie.inspect.tokens import TokenTable
from coterie.inspect.trace import LayerTrace, Trace

LEAST = 5
"""A token has to occur so often in the text before its lift is ranked."""
ENOUGH = 5
"""A pair of experts has to be expected so often before its lift is drawn."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts, the tokens that chose both, and how many would if only the loads ruled."""

    first: int
    second: int
    together: int
    expected: float

    @property
    def lift(self) -> float:
        """together / expected; 1 is what independence gives, and so is 0 of 0."""
        return self.together / self.expected if self.expected > 0 else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class LayerReport:
    """One layer with experts. counts: int64 [E] tokens of each expert; weights: f64 [E] sums of routing weights.

    router_entropy and load_entropy in bits. pairs: the pair furthest above independence first; `furthest` says how.
    """

    source: LayerTrace
    counts: np.ndarray
    weights: np.ndarray
    router_entropy: float
    load_entropy: float
    tokens: TokenTable
    pairs: tuple[Pair, ...]

    @property
    def layer(self) -> int:
        """The layer's number."""
        return self.source.layer

    @property
    def n_experts(self) -> int:
        """Routed experts of the layer."""
        return self.source.n_experts

    @property
    def relative(self) -> np.ndarray:
        """Loads relative to uniform, f64 [E]: 1 where an expert has its share, 0 where no token chose it."""
        return self.counts * (self.n_experts / self.counts.sum())  # type: ignore[no-any-return]

    def log_relative(self) -> np.ndarray:
        """log2 of the loads relative to uniform, f64 [E]; -inf where no token chose the expert."""
        with np.errstate(divide="ignore"):
            return np.log2(self.relative)  # type: ignore[no-any-return]

    @property
    def unused(self) -> list[int]:
        """Experts that no token chose."""
        return [int(e) for e in np.flatnonzero(self.counts == 0)]

    def check_expert(self, expert: int | None) -> None:
        """`ArgumentError` for an expert that the layer does not have."""
        if expert is not None and not 0 <= expert < self.n_experts:
            raise ArgumentError(
                f"expert {expert} of layer {self.layer}, expected 0 to {self.n_experts - 1}", code="inspect_expert"
            )

    def coactivation(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that chose both experts, int64 [E, E], and how many would if only the loads ruled, f64 [E, E]."""
        return together(self.source), expected_pairs(self.counts, len(self.source.ids), self.source.top_k)

    def log_lift(self) -> np.ndarray:
        """log2 of seen over expected for each pair, f64 [E, E]; -inf: never together.

        NaN on the diagonal, and where fewer than `ENOUGH` tokens are expected and a ratio would be chance.
        """
        seen, expected = self.coactivation()
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(expected < ENOUGH, np.nan, np.log2(seen / expected))

    def partners(self, expert: int, limit: int) -> list[Pair]:
        """The other experts that tokens of `expert` chose most above independence."""
        seen, expected = self.coactivation()
        others = np.delete(np.arange(self.n_experts), expert)
        return furthest(seen, expected, np.full_like(others, expert), others, limit)


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """What a trace says; `layers` are those with experts. least: how often a token occurs before its lift counts."""

    trace: Trace
    layers: tuple[LayerReport, ...]
    least: int = LEAST

    @classmethod
    def of(cls, trace: Trace, *, least: int = LEAST, n_pairs: int = 20) -> "Report":
        """The report on `trace`, whose sums are checked against tokens times k in every layer."""
        if least < 1:
            raise ArgumentError(f"least is {least}, expected 1 or more", code="inspect")
        return cls(trace, tuple(_layer(trace, layer, n_pairs) for layer in trace.layers), least)

    def layer(self, number: int) -> LayerReport:
        """The layer of that number; `ArgumentError` for one without experts."""
        for layer in self.layers:
            if layer.layer == number:
                return layer
        known = [layer.layer for layer in self.layers]
        raise ArgumentError(
            f"layer {number} has no experts in this trace, expected one of {_ranges(known)}", code="inspect_layer"
        )


def shares(weights: np.ndarray) -> np.ndarray:
    """Routing weights [T, k] as shares of their token's sum, by size; families scale them differently."""
    size = np.abs(weights.astype(np.float64))
    return size / np.maximum(size.sum(axis=1, keepdims=True), 1e-30)  # type: ignore[no-any-return]


def together(source: LayerTrace) -> np.ndarray:
    """Tokens that chose both experts, int64 [E, E]: symmetric, 0 on the diagonal."""
    E = source.n_experts
    out = np.zeros(E * E, np.int64)
    ids = source.ids.astype(np.int64)
    for slot in range(1, source.top_k):
        out += np.bincount((ids[:, slot:] * E + ids[:, :-slot]).ravel(), minlength=E * E)
    square = out.reshape(E, E)
    return square + square.T


def furthest(seen: np.ndarray, expected: np.ndarray, first: np.ndarray, second: np.ndarray, limit: int) -> list[Pair]:
    """Of the pairs (first, second) `limit` by (seen - expected) / sqrt(expected): a surplus by how surprising it is.

    It is no test: neighbouring tokens are not independent. Pairs not above what was expected are left out, and so are
    those of which less than one token is expected: their ratio says nothing.
    """
    n, usual = seen[first, second], expected[first, second]
    surplus = np.where(usual < 1, 0.0, (n - usual) / np.sqrt(np.maximum(usual, 1.0)))
    # What rounding leaves of an exact match is no surplus.
    order = [i for i in np.argsort(-surplus, kind="stable")[:limit] if surplus[i] > 1e-6]
    return [Pair(int(first[i]), int(second[i]), int(n[i]), float(usual[i])) for i in order]


def _layer(trace: Trace, source: LayerTrace, n_pairs: int) -> LayerReport:
    E = source.n_experts
    counts = np.bincount(source.ids.ravel(), minlength=E)
    shares = counts[counts > 0] / counts.sum()
    report = LayerReport(
        source=source,
        counts=counts,
        weights=np.bincount(source.ids.ravel(), source.weights.ravel().astype(np.float64), minlength=E),
        router_entropy=float(source.entropy.mean(dtype=np.float64)),
        load_entropy=float(max(0.0, -(shares * np.log2(shares)).sum())),
        tokens=TokenTable(trace.tokens, source.ids, counts),
        pairs=(),
    )
    seen, expected = report.coactivation()
    _check_sums(report, len(trace.tokens), seen, expected)
    return replace(report, pairs=tuple(furthest(seen, expected, *np.triu_indices(E, 1), n_pairs)))


def _check_sums(report: LayerReport, n_tokens: int, seen: np.ndarray, expected: np.ndarray) -> None:
    """Every token chose k experts, k - 1 others beside each: a report that says otherwise is a defect, and stops."""
    k, counts = report.source.top_k, report.counts
    sums = {
        "loads": counts.sum() == n_tokens * k and counts.max() <= n_tokens,
        "tokens of experts": np.array_equal(report.tokens.totals(), counts),
        "pairs": np.array_equal(seen.sum(axis=1), counts * (k - 1)),
        "expected pairs": np.allclose(expected.sum(axis=1), counts * (k - 1), rtol=0, atol=1e-6 * n_tokens),
        "weights": np.isclose(report.weights.sum(), report.source.weights.sum(dtype=np.float64)),
    }
    wrong = [name for name, is_right in sums.items() if not is_right]
    if wrong:
        raise CoterieError(
            f"layer {report.layer}: {' and '.join(wrong)} do not add up to {n_tokens} tokens with {k} experts each; "
            "this is a defect of the report: please report it",
            code="inconsistent",
        )


def _ranges(numbers: list[int]) -> str:
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) == numbers[-1] - numbers[0] + 1 else str(numbers)[1:-1]
