"""Routed rows sorted by expert: the tables that the jobs of a layer read."""

from numba import types

from coterie.backends.cpu.atoms import load_f32, load_i64, load_u32, store_f32, store_i64
from coterie.backends.cpu.jit import njit


@njit
def plan(ids, weights, n_rows, top_k, n_experts, counts, groups, tokens, inputs, sorted_weights, prepared, stride):
    """Sort the routed rows by expert, leaving out those whose weight is next to nothing; the number of groups.

    All arguments but the sizes are addresses: ids u32 [R], weights f32 [R]; counts i64 [E], groups i64 [min(E, R), 3],
    tokens and inputs i64 [R], sorted_weights f32 [R] are written.
    """
    for expert in range(n_experts):
        store_i64(counts, expert, 0)
    for row in range(n_rows):
        if abs(load_f32(weights, row)) >= types.float32(1e-10):
            expert = load_u32(ids, row)
            store_i64(counts, expert, load_i64(counts, expert) + 1)
    n_groups, first = 0, 0
    for expert in range(n_experts):
        count = load_i64(counts, expert)
        if count > 0:
            store_i64(groups, 3 * n_groups, expert)
            store_i64(groups, 3 * n_groups + 1, first)
            store_i64(groups, 3 * n_groups + 2, count)
            n_groups += 1
        store_i64(counts, expert, first)
        first += count
    for row in range(n_rows):
        weight = load_f32(weights, row)
        if abs(weight) >= types.float32(1e-10):
            expert = load_u32(ids, row)
            place = load_i64(counts, expert)
            store_i64(counts, expert, place + 1)
            token = row // top_k
            store_i64(tokens, place, token)
            store_i64(inputs, place, prepared + token * stride)
            store_f32(sorted_weights, place, weight)
    return n_groups


@njit
def inputs_of(tokens, groups, n_groups, prepared, stride, inputs):
    """inputs i64 [R]: where the prepared row of each sorted row's token lies; all arguments but n_groups and stride are
    addresses.
    """
    last = 3 * (n_groups - 1)
    for place in range(load_i64(groups, last + 1) + load_i64(groups, last + 2)):
        store_i64(inputs, place, prepared + load_i64(tokens, place) * stride)


@njit
def rows_of(first, stride, rows, n_rows):
    """rows i64 [R], at an address: first, first + stride, ..."""
    for place in range(n_rows):
        store_i64(rows, place, first + place * stride)


@njit
def places_of(tokens, groups, n_groups, n_tokens, top_k, places):
    """places i64 [T, 1 + k], at an address: how many sorted rows a token has, and which, in the order of experts."""
    for token in range(n_tokens):
        store_i64(places, token * (top_k + 1), 0)
    last = 3 * (n_groups - 1)
    for place in range(load_i64(groups, last + 1) + load_i64(groups, last + 2)):
        line = load_i64(tokens, place) * (top_k + 1)
        count = load_i64(places, line) + 1
        store_i64(places, line, count)
        store_i64(places, line + count, place)
