"""Other libraries that compute the same layer, each in a file of its own; none is imported before it is asked for.

A peer's factory takes a `Case` and returns entrants; it raises `RefusedError` (or ImportError) where it cannot take
part.
"""

from collections.abc import Callable, Iterable

from coterie.bench.entrants import Case, Entrant


def _mlx(case: Case) -> list[Entrant]:
    from coterie.bench.peers.mlx import entrants

    return entrants(case)


def _torch(case: Case) -> list[Entrant]:
    from coterie.bench.peers.torch import entrants

    return entrants(case)


def _onnxruntime(case: Case) -> list[Entrant]:
    from coterie.bench.peers.onnxruntime import entrants

    return entrants(case)


def _llama(case: Case) -> list[Entrant]:
    from coterie.bench.peers.llama import entrants

    return entrants(case)


PEERS: dict[str, Callable[[Case], Iterable[Entrant]]] = {
    "mlx": _mlx,
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "llama.cpp": _llama,
}
