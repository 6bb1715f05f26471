"""`gather_mm` and `gather_qmm`: indices, shapes and values, against float64 and against MLX itself."""

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, FEW_FORMATS, FORMATS, KINDS, floats, give, pack, ready, take
from coterie.arrays import as_numpy
from coterie.errors import ArgumentError
from coterie.formats import Format
from coterie.ops import gather_mm_reference, gather_qmm_reference
from tolerance import assert_close, bound, split

FOUR_BITS = Format.resolve("affine", 4, 32)

# x's leading axes, w's leading axes, lhs_indices, rhs_indices
INDICES = {
    "experts of tokens": ((6, 1), (5,), None, np.array([[0, 4], [4, 4], [1, 2], [3, 0], [2, 2], [0, 1]])),
    "rows with ids": ((4,), (5,), None, np.array([4, 0, 0, 2])),
    "both": ((3,), (5,), np.array([2, 0, 1, 2]), np.array([0, 0, 4, 3])),
    "both broadcast": ((3,), (5,), np.array([[2], [0]]), np.array([1, 4, 1])),
    "lhs alone": ((3,), (4,), np.array([2, 2, 0, 1]), None),
    "stacks of stacks": ((2, 3), (2, 2), np.array([5, 0, 3]), np.array([3, 0, 2])),
    "one matrix": ((), (3,), None, np.array([2, 2])),
    "no pairs": ((4,), (5,), np.zeros((0,), int), np.zeros((0,), int)),
    "neither": ((4,), (4,), None, None),
}


def indices_for(case: str, kind: str) -> tuple[dict, dict]:
    _, _, lhs, rhs = INDICES[case]
    plain = {"lhs_indices": lhs, "rhs_indices": rhs}
    given = {name: None if ids is None else give(ids.astype(np.uint32), kind) for name, ids in plain.items()}
    return plain, given


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", INDICES)
@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_gather_qmm_pairs_matrices_as_mlx_does(kind: str, case: str, transpose: bool, n_rows: int, rng) -> None:
    ready(kind, "gather_qmm")
    mx = pytest.importorskip("mlx.core")
    plain, given = indices_for(case, kind)
    x_lead, w_lead = INDICES[case][:2]
    packed = pack(floats(rng, (*w_lead, 40, 96)), FOUR_BITS, kind)
    x = floats(rng, (*x_lead, n_rows, 96 if transpose else 40))
    found = take(coterie.gather_qmm(give(x, kind), packed, **given, transpose=transpose), kind, "float32")
    reference = gather_qmm_reference(x, packed, **plain, transpose=transpose)
    assert_close(found, reference, bound("float32", 96) + split(kind, 2))
    if found.size:
        parts = [mx.array(as_numpy(part)) for part in (packed.codes, packed.scales, packed.biases)]
        theirs = {name: None if ids is None else mx.array(ids) for name, ids in plain.items()}
        expected = mx.gather_qmm(mx.array(x), *parts, **theirs, transpose=transpose, group_size=32, bits=4)
        assert_close(found, as_numpy(expected).astype(np.float64), 2 * bound("float32", 96), may_be_exact=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", INDICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_mm_pairs_matrices_as_mlx_does(kind: str, case: str, dtype: str, rng) -> None:
    ready(kind, "gather_mm")
    mx = pytest.importorskip("mlx.core")
    plain, given = indices_for(case, kind)
    x_lead, w_lead = INDICES[case][:2]
    a, w = floats(rng, (*x_lead, 3, 704), dtype), floats(rng, (*w_lead, 33, 704), dtype)
    b = np.ascontiguousarray(w.swapaxes(-1, -2))
    reference = gather_mm_reference(a, b, **plain)
    for second in (give(b, kind), give(w, kind).swapaxes(-1, -2)):
        found = take(coterie.gather_mm(give(a, kind), second, **given), kind, dtype)
        assert_close(found, reference, bound(dtype, 704) + split(kind, 1))
    if found.size and dtype == "float32":
        theirs = {name: None if ids is None else mx.array(ids) for name, ids in plain.items()}
        expected = as_numpy(mx.gather_mm(mx.array(a), mx.array(b), **theirs))
        assert_close(found, expected.astype(np.float64), 2 * bound("float32", 704), may_be_exact=True)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_gather_qmm_in_every_format(kind: str, fmt: Format, rng) -> None:
    ready(kind, "gather_qmm")
    width = 2816 if fmt.group_size == 128 else 704
    packed = pack(floats(rng, (5, 20, width), scale=0.05), fmt, kind)
    ids = np.array([[3, 0], [3, 3], [1, 4]], np.uint32)
    x = floats(rng, (3, 1, 1, width))
    found = take(coterie.gather_qmm(give(x, kind), packed, rhs_indices=give(ids, kind)), kind, "float32")
    assert_close(found, gather_qmm_reference(x, packed, None, ids), bound("float32", width) + split(kind, 1))


@pytest.mark.parametrize("n_experts", [1, 40, 60, 96])
@pytest.mark.parametrize("fmt", FEW_FORMATS[:2] + FEW_FORMATS[3:4], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sorted_rows_give_what_unsorted_rows_give(kind: str, fmt: Format, n_experts: int, rng) -> None:
    ready(kind, "gather_qmm")
    packed = pack(floats(rng, (n_experts, 24, 128)), fmt, kind)
    ids = np.sort(rng.integers(0, n_experts, 333)).astype(np.uint32)
    x = floats(rng, (333, 1, 128))
    arguments = (give(x, kind), packed)
    ascending = coterie.gather_qmm(*arguments, rhs_indices=give(ids, kind), sorted_indices=True)
    plain = coterie.gather_qmm(*arguments, rhs_indices=give(ids, kind))
    reference = gather_qmm_reference(x, packed, None, ids)
    for found in (ascending, plain):
        assert_close(take(found, kind, "float32"), reference, bound("float32", 128) + split(kind, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_promise_of_order_that_is_not_kept_is_refused(kind: str, rng) -> None:
    ready(kind)
    packed = pack(floats(rng, (4, 8, 64)), FOUR_BITS, kind)
    x, ids = give(floats(rng, (3, 1, 64)), kind), give(np.array([0, 3, 2], np.uint32), kind)
    with pytest.raises(ArgumentError, match="rhs_indices does not ascend"):
        coterie.gather_qmm(x, packed, rhs_indices=ids, sorted_indices=True)
    with pytest.raises(ArgumentError, match="lhs_indices does not ascend"):
        coterie.gather_mm(x, x.swapaxes(-1, -2), give(np.array([0, 2, 1], np.uint32), kind), None, sorted_indices=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [4, 2**32 - 1, -1])
def test_indices_out_of_range_are_refused_never_read(kind: str, bad: int, rng) -> None:
    ready(kind)
    packed = pack(floats(rng, (4, 8, 64)), FOUR_BITS, kind)
    x = give(floats(rng, (4, 1, 64)), kind)
    ids = give(np.array([0, bad, 1, 2], np.int64 if bad < 0 else np.uint32), kind)
    message = f"id {bad}, expected ids from 0 to 3"
    with pytest.raises(ArgumentError, match=f"rhs_indices has {message}"):
        coterie.gather_qmm(x, packed, rhs_indices=ids)
    with pytest.raises(ArgumentError, match=f"lhs_indices has {message}"):
        coterie.gather_qmm(x, packed, lhs_indices=ids)
    with pytest.raises(ArgumentError, match=f"rhs_indices has {message}"):
        coterie.gather_mm(x, x.swapaxes(-1, -2), None, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_strided_and_offset_views(kind: str, rng) -> None:
    ready(kind, "gather_mm", "gather_qmm")
    a, b, ids = floats(rng, (8, 6, 128)), floats(rng, (9, 64, 40)), rng.integers(0, 4, 8).astype(np.uint32)
    views = give(a, kind)[::2, 1::2, ::2], give(b, kind)[1::2, :, 3::3], give(ids, kind)[::2]
    found = take(coterie.gather_mm(views[0], views[1], None, views[2]), kind, "float32")
    reference = gather_mm_reference(a[::2, 1::2, ::2], b[1::2, :, 3::3], None, ids[::2])
    assert_close(found, reference, bound("float32", 64) + split(kind, 1))
    packed = pack(floats(rng, (4, 24, 64)), FOUR_BITS, kind)
    found = take(coterie.gather_qmm(views[0], packed, None, None, None, views[2]), kind, "float32")
    assert_close(
        found, gather_qmm_reference(a[::2, 1::2, ::2], packed, None, ids[::2]), bound("float32", 64) + split(kind, 1)
    )


def test_shapes_that_do_not_fit_are_refused_by_name(rng) -> None:
    packed = pack(floats(rng, (4, 8, 64)), FOUR_BITS)
    x = floats(rng, (3, 1, 64))
    with pytest.raises(ArgumentError, match="do not broadcast"):
        coterie.gather_qmm(x, packed, rhs_indices=np.zeros(5, np.uint32))
    with pytest.raises(ArgumentError, match="expected integers"):
        coterie.gather_qmm(x, packed, rhs_indices=np.zeros(3, np.float32))
    with pytest.raises(ArgumentError, match="last axis of x must be 64"):
        coterie.gather_qmm(x[..., :32], packed, rhs_indices=np.zeros(3, np.uint32))
    with pytest.raises(ArgumentError, match=r"x is \[64\]"):
        coterie.gather_qmm(x[0, 0], packed, rhs_indices=np.zeros(3, np.uint32))
    with pytest.raises(ArgumentError, match=r"expected \[..., M, K\] and \[..., K, N\]"):
        coterie.gather_mm(x, x, None, np.zeros(3, np.uint32))
