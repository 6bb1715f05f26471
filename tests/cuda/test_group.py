"""Grouping by both ways: exact, stable, whatever the distribution; ids out of range lead nowhere."""

import numpy as np
import pytest

from coterie.ops import group_reference
from tensors import off, on

CASES = {
    "one row": ([2], 5),
    "all rows to one expert": ([3] * 300, 7),
    "first and last expert alone": ([0, 95, 95, 0, 0, 0], 96),
    "one expert": ([0] * 129, 1),
    "more experts than rows": ([4000, 17, 4000], 4097),
    "random rows": (np.random.default_rng(0).integers(0, 9, 517).tolist(), 10),
}


@pytest.fixture(params=["few rows", "many rows", "many rows, few programs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every case goes both ways; few programs have many rows each."""
    from coterie.backends.cuda import routing

    if request.param != "few rows":
        monkeypatch.setattr(routing, "_FEW_ROWS", 0)
    if "few programs" in request.param:
        monkeypatch.setattr(routing, "_COUNTS", 24)
    return str(request.param)


def grouped(device: str, ids: np.ndarray, n_experts: int) -> list[np.ndarray]:
    from coterie.backends import cuda

    return [off(part) for part in cuda.group(on(device, ids.astype(np.int32)), n_experts)]


@pytest.mark.parametrize("case", CASES)
def test_groups_are_exact(device: str, way: str, case: str) -> None:
    if case == "more experts than rows" and way == "few rows" and device == "cpu":
        pytest.skip("the interpreter takes seconds for a program an expert")
    rows, n_experts = CASES[case]
    ids = np.array(rows)
    for found, expected in zip(grouped(device, ids, n_experts), group_reference(ids, n_experts), strict=True):
        assert found.dtype == np.uint32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("way")
def test_ids_out_of_range_come_last_and_belong_to_nobody(device: str) -> None:
    ids = np.array([1, -1, 0, 3, 2**31 - 1, 1, -(2**31), 2])
    order, offsets, inverse = grouped(device, ids, 3)
    assert offsets.tolist() == [0, 1, 3, 4]
    assert order.tolist() == [2, 0, 5, 7, 1, 3, 4, 6]
    assert inverse[order].tolist() == list(range(8))


def test_the_two_ways_meet_where_one_becomes_the_other(device: str, monkeypatch: pytest.MonkeyPatch, rng) -> None:
    from coterie.backends.cuda import routing

    monkeypatch.setattr(routing, "_FEW_ROWS", 256)
    for n_rows in (255, 256, 257):
        ids = rng.integers(0, 5, n_rows)
        for found, expected in zip(grouped(device, ids, 5), group_reference(ids, 5), strict=True):
            np.testing.assert_array_equal(found, expected)
