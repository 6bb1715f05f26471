"""`Trace`: which experts every token of a text was routed to, with what weights, in every layer; checked when made."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from coterie.errors import ArgumentError

MAX_EXPERTS = 1 << 16
MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True, eq=False)
class LayerTrace:
    """One layer with experts. ids: uint32 [T, k], different experts for each token; weights: f32 [T, k].

    entropy: f32 [T], in bits, of the router's probabilities over all experts: the softmax of its logits, or where a
    family scores by sigmoid the scores divided by their sum; selection biases and scales are left out.
    """

    layer: int
    n_experts: int
    ids: np.ndarray
    weights: np.ndarray
    entropy: np.ndarray

    @property
    def top_k(self) -> int:
        """Experts for each token."""
        return int(self.ids.shape[1])

    def __post_init__(self) -> None:
        where = f"layer {self.layer}"
        if not 1 <= self.n_experts <= MAX_EXPERTS:
            raise _lie(f"{where}: {self.n_experts} experts", f"1 to {MAX_EXPERTS}")
        _check_array(f"{where}: ids", self.ids, np.uint32, 2)
        _check_array(f"{where}: weights", self.weights, np.float32, 2)
        _check_array(f"{where}: entropy", self.entropy, np.float32, 1)
        n_tokens, k = self.ids.shape
        if not 1 <= k <= self.n_experts or n_tokens == 0:
            raise _lie(
                f"{where}: {k} experts a token of {self.n_experts}, {n_tokens} tokens",
                "1 to all, and one token or more",
            )
        if self.weights.shape != self.ids.shape or self.entropy.shape != (n_tokens,):
            raise _lie(
                f"{where}: ids {list(self.ids.shape)}, weights {list(self.weights.shape)}, entropy "
                f"{list(self.entropy.shape)}",
                "[T, k], [T, k] and [T]",
            )
        self._check_values(where)

    def _check_values(self, where: str) -> None:
        highest = int(self.ids.max())
        if highest >= self.n_experts:
            raise _lie(f"{where}: expert {highest}", f"0 to {self.n_experts - 1}")
        ordered = np.sort(self.ids, axis=1)
        twice = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if twice.size:
            raise _lie(f"{where}: token {twice[0]} has one expert twice", "different experts for each token")
        if not np.isfinite(self.weights).all():
            raise _lie(f"{where}: weights with NaN or infinity", "finite numbers")
        # The entropy of E probabilities is 0 to log2 E; the room is for sums in f32.
        if not ((self.entropy >= -1e-3) & (self.entropy <= np.log2(self.n_experts) + 1e-3)).all():
            raise _lie(f"{where}: an entropy outside of 0 to log2 {self.n_experts} bits", "one inside")


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """The routing of a text through a model. tokens: uint32 [T]; texts: each token that occurs, as people read it.

    model: a name for people. fingerprint: `Model.fingerprint`. n_layers: all layers; `layers` has those with experts,
    by number. window: the text went through in windows of so many tokens, each as if nothing came before it.
    """

    model: str
    fingerprint: str
    n_layers: int
    window: int
    tokens: np.ndarray
    texts: Mapping[int, str]
    layers: tuple[LayerTrace, ...]

    def __post_init__(self) -> None:
        _check_array("tokens", self.tokens, np.uint32, 1)
        if len(self.tokens) == 0:
            raise _lie("no tokens", "one or more")
        if not 1 <= self.n_layers <= MAX_LAYERS:
            raise _lie(f"{self.n_layers} layers", f"1 to {MAX_LAYERS}")
        if self.window < 1:
            raise _lie(f"windows of {self.window} tokens", "one token or more")
        numbers = [layer.layer for layer in self.layers]
        if not numbers or numbers != sorted(set(numbers)) or not 0 <= numbers[0] <= numbers[-1] < self.n_layers:
            raise _lie(f"layers with experts {numbers[:8]}", f"different ones from 0 to {self.n_layers - 1}, in order")
        for layer in self.layers:
            if len(layer.ids) != len(self.tokens):
                raise _lie(f"layer {layer.layer}: {len(layer.ids)} tokens", f"{len(self.tokens)}, as the text has")
        nameless = set(np.unique(self.tokens).tolist()) - self.texts.keys()
        if nameless:
            raise _lie(f"no text for token {min(nameless)}", "one for every token that occurs")

    def text_of(self, position: int) -> str:
        """The token at a position of the text, as people read it."""
        return self.texts[int(self.tokens[position])]

    @property
    def n_windows(self) -> int:
        """Windows that the text was cut into."""
        return -(-len(self.tokens) // self.window)


def _check_array(what: str, array: np.ndarray, dtype: type[np.generic], rank: int) -> None:
    if array.dtype != dtype or array.ndim != rank:
        raise _lie(f"{what}: {array.dtype} of rank {array.ndim}", f"{np.dtype(dtype)} of rank {rank}")


def _lie(found: str, expected: str) -> ArgumentError:
    return ArgumentError(f"routing trace: found {found}, expected {expected}; record it again", code="trace")
