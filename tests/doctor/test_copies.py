"""Copies are found by samples and made sure of byte by byte; values are scanned in pieces as they would be whole."""

from pathlib import Path

import numpy as np
import pytest

from coterie.arrays import bfloat16
from coterie.checkpoint import write_safetensors
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.doctor import values
from coterie.doctor.copies import copies, same_bytes


def test_what_differs_between_the_samples_is_no_copy(rng: np.random.Generator) -> None:
    first = rng.integers(0, 1 << 32, (4, 20_000), np.uint32)
    near, same = first.copy(), first.copy()
    near[1, 123] ^= 1
    assert copies([("a", first), ("b", near), ("c", same)]) == [["a", "c"]]
    assert not same_bytes(first, near)
    assert same_bytes(first, same)


def test_shape_and_dtype_count(rng: np.random.Generator) -> None:
    first = rng.integers(0, 1 << 32, (4, 200), np.uint32)
    assert copies([(0, first), (1, first.reshape(8, 100)), (2, first.view(np.int32))]) == []


def test_constant_and_empty_arrays_are_left_out() -> None:
    ones = np.full((64, 64), 0x01010101, np.uint32)
    assert copies([(0, ones), (1, ones.copy()), (2, np.empty((0, 3))), (3, np.empty((0, 3)))]) == []


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, bfloat16])
@pytest.mark.parametrize("shape", [(7,), (5, 13), (3, 5, 7), (1, 100), (), (0, 4), (4, 0)])
def test_statistics_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, shape: tuple[int, ...], dtype: type
) -> None:
    """Pieces of 64 bytes cut rows in the middle."""
    monkeypatch.setattr(values, "CHUNK", 64)
    array = np.asarray(rng.standard_normal(shape) * 100).astype(dtype)
    if array.size > 5:
        array.reshape(-1)[5] = np.nan
        array.reshape(-1)[2] = -np.inf
    write_safetensors(tmp_path / "t.safetensors", {"t": array})
    with SafetensorsFile(tmp_path / "t.safetensors") as file:
        found = values.read_values([file])["t"]
    numbers = array.astype(np.float64)
    finite = np.where(np.isfinite(numbers), np.abs(numbers), 0)
    assert found.n_bad == int((~np.isfinite(numbers)).sum())
    assert found.largest == finite.max(initial=0)
    if array.size > 5:
        assert found.first_bad == [int(i) for i in np.unravel_index(2, shape)]
    if array.ndim > 1 and array.size:
        assert found.rows is not None
        assert np.array_equal(found.rows, finite.reshape(shape[0], -1).max(axis=1))


@pytest.mark.parametrize(("words", "not_a_number"), [(4, (255,)), (2, (127, 255))])
def test_byte_scales_are_judged_by_their_format(
    tmp_path: Path, rng: np.random.Generator, words: int, not_a_number: tuple[int, ...]
) -> None:
    """E8M0 beside 4 words a group, E4M3 beside 2."""
    scales = rng.integers(0, 127, (6, 8), np.uint8)
    scales[4] = 100
    scales[1, :2] = not_a_number[0], not_a_number[-1]
    codes = rng.integers(0, 1 << 32, (6, 8 * words), np.uint32)
    write_safetensors(tmp_path / "t.safetensors", {"m.scales": scales, "m.weight": codes})
    with SafetensorsFile(tmp_path / "t.safetensors") as file:
        found = values.read_values([file])
    assert found.keys() == {"m.scales"}
    assert (found["m.scales"].n_bad, found["m.scales"].first_bad) == (2, [1, 0])
    constant = found["m.scales"].constant_rows
    assert constant is not None
    assert constant.tolist() == [4]
