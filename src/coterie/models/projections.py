"""Products of the same rows with the matrices of several linear modules, biases included."""

from collections.abc import Mapping
from typing import Any

from coterie.arrays import Array
from coterie.models.backend import Backend
from coterie.models.weights import bias_of


def products(
    backend: Backend, x: Array, weights: Mapping[str, Any], modules: Mapping[str, bool], *, exact: bool = False
) -> list[Array]:
    """x [T, K] times the matrix of each module, a path with whether it has a bias: [T, N] each, in their order.

    As in `coterie.models.launches`, a back end is asked that has a verb `projections`: with the arguments of `linears`,
    whose results stay inside of the layer, so they may be rounded as what matrices multiply is.
    """
    matrices = [weights[path] for path in modules]
    biases = [weights[bias_of(path)] if biased else None for path, biased in modules.items()]
    run = getattr(backend, "projections", backend.linears)
    return run(x, matrices, biases, exact=exact)
