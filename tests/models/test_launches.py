"""Pieces of a layer that a back end may have in one launch: it is asked where it has them, and told the whole piece."""

from typing import Any

import numpy as np
import pytest

from coterie.models.decoder import Decoder
from coterie.runtime import load
from coterie.runtime.cache import KeyValueCache
from models import tiny

IDS = tiny.token_ids(12)
PIECES = ("add_norms", "attend_rows", "attend_latent_rows", "mlp", "routed_experts", "pass_rows")


class Asking:
    """A back end that has every piece as a verb of its own, and computes it as it would be without."""

    def __init__(self, backend: Any, asked: list[str]) -> None:
        self._backend, self._asked = backend, asked

    def __getattr__(self, name: str) -> Any:
        if name not in PIECES:
            return getattr(self._backend, name)

        def piece(*arguments: Any) -> Any:
            self._asked.append(name)
            from coterie.models import grouped, latent, launches

            if name == "pass_rows":
                from coterie.models.rows import rows_of

                ids, parts, frequencies = arguments
                return rows_of(self._backend, [(ids[rows], cache) for rows, _, cache in parts], frequencies)
            if name == "routed_experts":
                x, seen, *rest = arguments
                routed = launches.RoutedExperts(*rest)
                return launches.routed_experts(self._backend, x, seen, routed, 0, None)
            module = {"attend_rows": grouped, "attend_latent_rows": latent}.get(name, launches)
            return getattr(module, name)(self._backend, *arguments)

        return piece


class Looking:
    def routed(self, layer: int, logits: Any, spec: Any, routing: Any) -> Any:  # noqa: ARG002
        return routing


def logits(made: Decoder, observer: Any = None) -> np.ndarray:
    cache = KeyValueCache(made.architecture, chunk=8, limit=len(IDS))
    return np.concatenate([made.logits(made.hidden(part, cache, observer)) for part in (IDS[:8], IDS[8:9], IDS[9:])])


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("qwen3_moe", {"add_norms", "attend_rows", "mlp", "routed_experts", "pass_rows"}),
        ("gemma4_per_layer_experts", {"add_norms", "attend_rows", "mlp", "routed_experts", "pass_rows"}),
        ("gpt_oss", {"add_norms", "attend_rows", "routed_experts", "pass_rows"}),
        ("deepseek_v3", {"add_norms", "attend_latent_rows", "mlp", "routed_experts", "pass_rows"}),
    ],
)
def test_a_back_end_with_pieces_of_its_own_is_asked_for_them(name: str, pieces: set[str]) -> None:
    made, asked = load(tiny.checkpoint(name, "4 bits g64"))._decoder, list[str]()
    expected = logits(made)
    made.backend = Asking(made.backend, asked)  # type: ignore[assignment]
    assert np.array_equal(logits(made), expected)
    assert set(asked) == pieces


def test_where_somebody_looks_on_routing_is_not_part_of_a_piece() -> None:
    made, asked = load(tiny.checkpoint("qwen3_moe", "4 bits g64"))._decoder, list[str]()
    made.backend = Asking(made.backend, asked)  # type: ignore[assignment]
    logits(made, Looking())
    assert "add_norms" in asked
    assert "routed_experts" not in asked


class Behind:
    """A back end without pieces of its own that can be told that a routing is known."""

    def __init__(self, backend: Any, asked: list[str]) -> None:
        self._backend, self._asked = backend, asked

    def __getattr__(self, name: str) -> Any:
        if name in PIECES:
            raise AttributeError(name)
        verb = getattr(self._backend, "moe" if name == "moe_behind" else name)
        if name not in ("route", "glu", "moe", "moe_behind"):
            return verb

        def noted(*arguments: Any, **options: Any) -> Any:
            self._asked.append(name)
            return verb(*arguments, **options)

        return noted


@pytest.mark.parametrize(
    ("name", "order"),
    [("mixtral", ["route", "moe"]), ("gemma4_per_layer_experts", ["route", "glu", "moe_behind", "glu"])],
)
def test_experts_are_chosen_before_a_dense_branch_and_run_behind_it(name: str, order: list[str]) -> None:
    made, asked = load(tiny.checkpoint(name, "4 bits g64"))._decoder, list[str]()
    made.backend = Behind(made.backend, [])  # type: ignore[assignment]
    expected = logits(made)
    made.backend = Behind(made.backend._backend, asked)  # type: ignore[attr-defined, assignment]
    assert np.array_equal(logits(made, Looking()), expected)
    n_layers = sum(layer.moe is not None for layer in made.architecture.layers)
    assert asked == order * n_layers * 3
