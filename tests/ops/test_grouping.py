"""Grouping routed rows by expert: exact, stable, for every distribution of ids."""

import numpy as np
import pytest

import coterie
from array_kinds import KINDS, give, ready, take
from coterie.errors import ArgumentError
from coterie.ops import group_reference

CASES = {
    "one row": (np.array([[3]]), 5),
    "no rows": (np.zeros((0, 8)), 60),
    "all rows to one expert": (np.full((700, 8), 17), 40),
    "first and last expert alone": (np.array([[0, 95], [95, 0], [0, 0]]), 96),
    "an id twice within one token": (np.array([[2, 2, 1], [1, 1, 1]]), 4),
    "one expert": (np.zeros((9, 1)), 1),
}


def random_ids(n_tokens: int, k: int, n_experts: int, empty: int) -> np.ndarray:
    ids = np.random.default_rng(n_tokens).integers(0, n_experts - 1, (n_tokens, k))
    return ids + (ids >= empty)


for tokens, width, experts in (
    (5000, 8, 60),
    (4097, 8, 128),
    (8193, 8, 96),
    (33, 17, 40),
    (1, 8, 128),
    (40_000, 1, 40),
):
    CASES[f"{tokens} tokens, {width} of {experts}"] = (random_ids(tokens, width, experts, 7), experts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_groups_are_exact(kind: str, case: str) -> None:
    ready(kind, "group")
    ids, n_experts = CASES[case]
    ids = ids.astype(np.uint32)
    groups = coterie.group(give(ids, kind), n_experts)
    order, offsets, inverse = (take(part, kind, "uint32") for part in (groups.order, groups.offsets, groups.inverse))
    for found, expected in zip((order, offsets, inverse), group_reference(ids, n_experts), strict=True):
        np.testing.assert_array_equal(found, expected)
    flat = ids.reshape(-1)
    assert offsets.shape == (n_experts + 1,)
    assert (np.diff(flat[order].astype(int)) >= 0).all()
    np.testing.assert_array_equal(inverse[order], np.arange(flat.size))
    for expert in (0, n_experts // 2, n_experts - 1):
        rows = order[offsets[expert] : offsets[expert + 1]]
        np.testing.assert_array_equal(rows, np.flatnonzero(flat == expert))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("kind", KINDS)
def test_any_integer_ids_are_taken(kind: str, dtype: type) -> None:
    ready(kind, "group")
    groups = coterie.group(give(np.array([[2, 0], [1, 2]], dtype), kind), 3)
    assert take(groups.order, kind, "uint32").tolist() == [1, 2, 0, 3]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bad", "dtype"), [(60, np.uint32), (-1, np.int64), (2**31, np.uint32), (255, np.uint8)])
def test_ids_out_of_range_are_refused(kind: str, bad: int, dtype: type) -> None:
    ready(kind)
    ids = np.zeros((500, 8), dtype)
    ids[499, 7] = bad
    with pytest.raises(ArgumentError, match=f"id {bad}, expected ids from 0 to 59"):
        coterie.group(give(ids, kind), 60)


def test_the_example_of_the_module_is_right() -> None:
    order, offsets, inverse = group_reference(np.array([[2, 0], [2, 3], [0, 2]]), 4)
    assert order.tolist() == [1, 4, 0, 2, 5, 3]
    assert offsets.tolist() == [0, 2, 2, 5, 6]
    assert inverse.tolist() == [2, 0, 3, 5, 1, 4]


def test_what_is_no_count_or_no_ids_is_refused() -> None:
    with pytest.raises(ArgumentError, match="n_experts is 0"):
        coterie.group(np.zeros(3, np.uint32), 0)
    with pytest.raises(ArgumentError, match="float32, expected integers"):
        coterie.group(np.zeros(3, np.float32), 4)
    with pytest.raises(ArgumentError, match="bool, expected integers"):
        coterie.group(np.zeros(3, bool), 4)
