"""Grouping: the routed rows of all tokens, brought together expert by expert.

A routed row is one expert of one token: with k experts a token, row r belongs to token r // k. Three tokens with two
experts each, of four experts:

    ids      [[2, 0], [2, 3], [0, 2]]          rows 0 ... 5 want experts 2 0 2 3 0 2
    order    [1, 4, 0, 2, 5, 3]                rows by expert, and by row within an expert
    offsets  [0, 2, 2, 5, 6]                   expert e has order[offsets[e] : offsets[e + 1]]; expert 1 has none
    inverse  [2, 0, 3, 5, 1, 4]                where each row went: inverse[order[i]] = i
"""

import math
from dataclasses import dataclass

import numpy as np

from coterie.arrays import Array, as_numpy, kind_of
from coterie.errors import CapacityError
from coterie.ops import checks
from coterie.ops.forms import FORMS
from coterie.ops.routing import Routing, routed_ids


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Routed rows by expert: order uint32 [R], offsets uint32 [E + 1], inverse uint32 [R]."""

    order: Array
    offsets: Array
    inverse: Array


def group(ids: Array | Routing, n_experts: int) -> Groups:
    """Sort the routed rows of ids [...] (integers below `n_experts`) by expert; rows of one expert keep their order.

    Experts without rows are normal, and so is an id twice within one token. For MLX and on a GPU the check of the ids
    waits for their values; a `Routing` in place of ids, as `route` made it, is known to be in range.
    """
    routing = ids if isinstance(ids, Routing) else Routing(ids, None)
    given = routing.ids
    form = FORMS[kind_of(given)]
    n = checks.positive_integer(n_experts, "n_experts")
    checked = routed_ids(routing, n, form)
    n_rows = math.prod(tuple(given.shape))
    if n_rows >= 1 << 32:
        raise CapacityError(f"{n_rows} routed rows do not fit in 32-bit indices; split the tokens into several calls")
    if n_rows == 0:
        return Groups(*(form.zeros((size,), "uint32", given) for size in (0, n + 1, 0)))
    order, offsets, inverse = form.verb("group")(checked.reshape(-1), n)
    return Groups(form.back(order, (n_rows,)), form.back(offsets, (n + 1,)), form.back(inverse, (n_rows,)))


def group_reference(ids: Array, n_experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`group` in plain NumPy: order, offsets, inverse."""
    flat = as_numpy(ids).reshape(-1)
    order = np.argsort(flat, kind="stable")
    counts = np.bincount(flat.astype(np.int64), minlength=n_experts)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return order.astype(np.uint32), offsets.astype(np.uint32), inverse.astype(np.uint32)
