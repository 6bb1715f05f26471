"""What stands before the products: activations in the order of codes, slots by expert, the table of their blocks."""

import numpy as np
import pytest

from array_kinds import DTYPES, floats
from coterie.formats import Format
from coterie.ops.dispatch import numpy_dtype
from cuda.weights_made import on_device, weight
from tensors import off, on

pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("fenced")

SLOTS = {
    "one slot": ([2], 5),
    "all to one expert": ([3] * 100, 7),
    "first and last expert alone": ([0, 95, 95, 0, 0, 0], 96),
    "one expert": ([0] * 33, 1),
    "two full blocks each": ([0, 1, 2] * 64, 3),
    "random": (np.random.default_rng(0).integers(0, 9, 517).tolist(), 10),
    "strangers": ([1, -1, 0, 3, 2**31 - 1, 1, -(2**31), 2] * 5, 3),
    "strangers alone": ([-1, 7, 4], 4),
}


@pytest.mark.parametrize("rows", [4, 16, 64])
@pytest.mark.parametrize("way", ["in one launch", "by many programs", "by two programs", "of many experts"])
@pytest.mark.parametrize("case", SLOTS)
def test_blocks_cover_each_slot_once(
    device: str, case: str, way: str, rows: int, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    from coterie.backends.cuda import products, sorting
    from coterie.backends.cuda.stacks import stack_of
    from coterie.backends.cuda.tiles import Tile

    ids, n_experts = np.array(SLOTS[case][0]), SLOTS[case][1]
    monkeypatch.setattr(products, "_MOST_SLOTS", len(ids) if way == "in one launch" else 0)
    monkeypatch.setattr(sorting, "_MOST_ROWS", 32)
    if way == "by two programs":
        monkeypatch.setattr(sorting, "_MOST_PROGRAMS", 2)
    if way == "of many experts":
        monkeypatch.setattr(sorting, "_MOST_EXPERTS", 0)
    stack = stack_of(on_device(device, weight(rng, (n_experts, 4, 64), "bfloat16")))
    x = on(device, floats(rng, (1, 64), "bfloat16"))
    tile = Tile(False, 64, rows, 3, 4)
    _, slots = products.prepare_and_group(x, stack, 1, tile, on(device, ids.astype(np.int32)), len(ids))
    order, blocks = off(slots.order), off(slots.blocks)

    inside = (ids >= 0) & (ids < n_experts)
    expected = np.argsort(np.where(inside, ids, n_experts), kind="stable")[: inside.sum()]
    np.testing.assert_array_equal(order[: inside.sum()], expected)
    borders = np.searchsorted(ids[expected], np.arange(n_experts + 1))

    assert len(blocks) == slots.n_blocks(rows)
    is_hole = blocks[:, 0] < 0
    assert not (is_hole[:-1] & ~is_hole[1:]).any(), "holes stand at the end only"
    covered = []
    for expert, first, end in blocks[~is_hole, :3]:
        assert end == borders[expert + 1]
        last = min(first + rows, end)
        assert borders[expert] <= first < last
        covered += range(first, last)
    assert covered == list(range(inside.sum()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", [("affine", 4, 64), ("affine", 3, 32), ("affine", 1, 128), ("mxfp8", 8, 32)], ids=str)
def test_activations_stand_in_the_order_of_codes(
    device: str, fmt: tuple[str, int, int], dtype: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """A row is divided among several programs; the sum of a group is the one that float64 rounds to."""
    from coterie.backends.cuda import products
    from coterie.backends.cuda.stacks import stack_of
    from coterie.backends.cuda.tiles import few_tile

    monkeypatch.setattr(products, "_CHUNK", 256)
    form, (mode, bits, group) = Format.resolve(*fmt), fmt
    in_unit = 16 // bits if 16 % bits == 0 else 1
    stack, x = stack_of(on_device(device, weight(rng, (4, 640), form))), floats(rng, (3, 640), dtype, 30)
    for parts in (1, 2):
        rows = products.prepare(on(device, x), stack, parts, few_tile(parts))
        rest = x.astype(np.float32)
        for part in range(parts):
            number = rest.astype(numpy_dtype("bfloat16"))
            rest = rest - number.astype(np.float32)
            places = number.reshape(3, 640 // group, group // in_unit, in_unit).swapaxes(-1, -2)
            np.testing.assert_array_equal(off(rows.values)[part], places.reshape(3, 640))
            if mode == "affine":
                sums = places.reshape(3, -1, group).astype(np.float64).sum(-1)
                np.testing.assert_array_equal(off(rows.sums)[part], sums.astype(np.float32))
        assert mode == "affine" or rows.sums.numel() == 0
