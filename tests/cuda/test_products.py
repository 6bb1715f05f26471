"""Matrix products of every form of weights: by whole matrices and by those that indices name, around every tile."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, FORMATS, floats
from coterie.errors import CapacityError
from coterie.formats import Format, Packed
from coterie.ops import (
    dequantize_reference,
    gather_mm_reference,
    gather_qmm_reference,
    matvec_reference,
    quantized_matmul_reference,
)
from cuda.weights_made import (
    FORMS,
    ONE_PART,
    TWO_PARTS,
    Limit,
    assert_within,
    input_limit,
    on_device,
    output_limit,
    parts_of,
    product_limit,
    weight,
)
from tensors import off, on
from tolerance import bound

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("fenced")


def dense(made: Packed | np.ndarray) -> np.ndarray:
    return dequantize_reference(made) if isinstance(made, Packed) else made.astype(np.float64)


def run_linears(device: str, x: np.ndarray, weights: list[Any], biases: list[Any], **options: Any) -> list[np.ndarray]:
    from coterie.backends.cuda.linear import linears

    given = [on_device(device, weight) for weight in weights], [on_device(device, bias) for bias in biases]
    return [off(product) for product in linears(on(device, x), *given, **options)]


def check(found: np.ndarray, x: np.ndarray, made: Packed | np.ndarray, bias: np.ndarray | None, parts: int) -> None:
    """Products of activations in f32 with a matrix, beside float64."""
    expected = x.astype(np.float64) @ dense(made).T + (0 if bias is None else bias)
    assert_within(found, expected, product_limit(made, parts) + (ONE_PART if parts == 1 else TWO_PARTS))


WIDTHS = {16: 336, 32: 96, 64: 320, 128: 384}
"""K by group size: 21, 3, 5 and 3 groups, never a whole number of batches."""


def always_in_large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 8 rows go to the kernel for many, which small matrices are too small for."""
    monkeypatch.setattr("coterie.backends.cuda.tiles._ROWS_OF_ONE", 8)
    monkeypatch.setattr("coterie.backends.cuda.tiles._SHARED_COLUMNS", 8)
    monkeypatch.setattr("coterie.backends.cuda.tiles._MOST_SMALL", 0)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_format_by_few_rows_and_by_many(
    device: str, fmt: Format, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    always_in_large_tiles(monkeypatch)
    made = weight(rng, (19, WIDTHS[fmt.group_size]), fmt, "float16")
    for n_rows, parts in ((3, 2), (10, 1)):
        x = floats(rng, (n_rows, made.shape[1]))
        (found,) = run_linears(device, x, [made], [None], parts=parts)
        check(found, x, made, None, parts)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("form", ["4 bits", "bf16"])
def test_numbers_of_rows_around_tiles(
    device: str, form: str, parts: int, large: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        always_in_large_tiles(monkeypatch)
    made, bias = weight(rng, (65, 64), FORMS[form]), floats(rng, (65,))
    for n_rows in (0, 1, 7, 8, 9, 16, 17, 32, 33, 48, 49, 65):
        x = floats(rng, (n_rows, 64))
        (found,) = run_linears(device, x, [made], [bias], parts=parts)
        assert found.shape == (n_rows, 65)
        if n_rows:
            check(found, x, made, bias, parts)


def test_several_matrices_meet_the_same_rows(
    device: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of one format go together, up to three at a time, unless they are too large; results keep their order."""
    monkeypatch.setattr("coterie.backends.cuda.tiles._MOST_SMALL", 6)
    names = ["4 bits", "bf16", "4 bits", "f32", "4 bits", "mxfp4", "4 bits", "bf16", "f16"]
    sizes = [16, 40, 1, 33, 17, 24, 50, 15, 31]
    weights = [weight(rng, (size, 192), FORMS[name]) for name, size in zip(names, sizes, strict=True)]
    biases = [floats(rng, (size,)) if index % 3 != 1 else None for index, size in enumerate(sizes)]
    bias = np.concatenate([np.zeros(n) if bias is None else bias for n, bias in zip(sizes, biases, strict=True)])
    for n_rows in (2, 11, 40):
        x = floats(rng, (n_rows, 192))
        found = run_linears(device, x, weights, biases, parts=2)
        assert [product.shape for product in found] == [(n_rows, size) for size in sizes]
        expected = x @ np.concatenate([dense(made) for made in weights]).T + bias
        assert_within(
            np.concatenate(found, 1), expected, TWO_PARTS + product_limit(weights[0], 2) + product_limit(weights[3], 2)
        )
    assert run_linears(device, x, [], [], parts=2) == []


@pytest.mark.parametrize("form", ["4 bits", "8 bits", "nvfp4", "f32"])
def test_a_row_alone_has_the_bits_that_it_has_among_others(device: str, form: str, rng: np.random.Generator) -> None:
    weights, biases = [weight(rng, (n, 160 if form == "nvfp4" else 192), FORMS[form]) for n in (20, 33)], [None] * 2
    x = floats(rng, (9, weights[0].shape[1]))
    for parts in (1, 2):
        among = run_linears(device, x, weights, biases, parts=parts, alone=True)
        few = run_linears(device, x[:8], weights, biases, parts=parts)
        for row in (3, 8):
            alone = run_linears(device, x[row : row + 1], weights, biases, parts=parts)
            for index in range(2):
                np.testing.assert_array_equal(among[index][row], alone[index][0])
                assert row == 8 or np.array_equal(few[index][row], alone[index][0])


@pytest.mark.parametrize("form", ["4 bits", "3 bits", "mxfp8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantized_matmul_both_ways(doors: str, dtype: str, form: str, rng: np.random.Generator) -> None:
    """Scales of affine codes have the dtype of activations: the result has it, too."""
    made = weight(rng, (40, 192), FORMS[form], dtype)
    for n_rows, transpose in ((2, True), (20, True), (3, False)):
        x = floats(rng, (n_rows, 192 if transpose else 40), dtype)
        found = off(coterie.quantized_matmul(on(doors, x), on_device(doors, made), transpose=transpose))
        assert found.dtype.name == dtype
        limit = product_limit(made, parts_of(dtype)) + input_limit(dtype) + output_limit(dtype)
        assert_within(found, quantized_matmul_reference(x, made, transpose), limit)


INDICES = [2, 0, 2, 2, 1, 0, 2, 1, 2]
"""Not sorted, with repetitions, and one of four is missing."""


@pytest.mark.parametrize(("form", "dtype"), [("4 bits", "float32"), ("8 bits", "bfloat16"), ("nvfp4", "float16")])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_gather_qmm_both_ways(doors: str, n_rows: int, form: str, dtype: str, rng: np.random.Generator) -> None:
    made, rhs = weight(rng, (4, 32, 64), FORMS[form], dtype), np.array(INDICES)
    lhs = rng.integers(0, 5, len(rhs))
    limit = product_limit(made, parts_of(dtype)) + input_limit(dtype) + output_limit(dtype)
    for n_pairs, transpose in ((2, True), (9, True), (9, False)):
        x, ids = floats(rng, (5, n_rows, 64 if transpose else 32), dtype), (lhs[:n_pairs], rhs[:n_pairs])
        given = [on(doors, index) for index in ids]
        found = off(coterie.gather_qmm(on(doors, x), on_device(doors, made), None, None, *given, transpose))
        assert_within(found, gather_qmm_reference(x, made, *ids, transpose), limit)
    ascending = np.sort(rhs)
    x = floats(rng, (9, n_rows, 64), dtype)
    given = {"rhs_indices": on(doors, ascending), "sorted_indices": True}
    found = off(coterie.gather_qmm(on(doors, x), on_device(doors, made), **given))
    assert_within(found, gather_qmm_reference(x, made, None, ascending), limit)


@pytest.mark.parametrize(
    ("a_dtype", "b_dtype"), [(name, name) for name in DTYPES] + [("float32", "bfloat16"), ("float16", "bfloat16")]
)
def test_gather_mm_of_dense_and_of_transposed_stacks(
    doors: str, a_dtype: str, b_dtype: str, rng: np.random.Generator
) -> None:
    w, rhs = floats(rng, (4, 33, 80), b_dtype, 80**-0.5), np.array(INDICES)
    dtype = a_dtype if a_dtype == b_dtype else "float32"
    limit = product_limit(w, 2) + input_limit(a_dtype) + output_limit(dtype)
    for n_rows, n_pairs in ((1, 2), (1, 9), (3, 9)):
        x, ids = floats(rng, (9, n_rows, 80), a_dtype), (np.arange(n_pairs)[::-1].copy(), rhs[:n_pairs])
        given = [on(doors, index) for index in ids]
        for stack in (on(doors, w).mT, on(doors, w.swapaxes(1, 2))):
            found = off(coterie.gather_mm(on(doors, x), stack, *given))
            assert found.dtype.name == dtype
            assert_within(found, gather_mm_reference(x, w.swapaxes(1, 2), *ids), limit)


@pytest.mark.parametrize("dtype", DTYPES)
def test_matvec(doors: str, dtype: str, rng: np.random.Generator) -> None:
    for n, k in ((40, 200), (33, 64), (17, 1)):
        w, x = floats(rng, (n, k), dtype), floats(rng, (k,), dtype)
        found = off(coterie.matvec(on(doors, w), on(doors, x)))
        limit = product_limit(w, 2) + input_limit(dtype) + output_limit(dtype)
        assert_within(found, matvec_reference(w, x), limit)


@pytest.mark.parametrize("n_pairs", [3, 12])
def test_ids_of_no_expert_give_zeros(device: str, n_pairs: int, rng: np.random.Generator) -> None:
    """While a graph is captured nobody can refuse them; stacks beside the one that was given are full of NaN."""
    from coterie.backends import cuda

    wide = floats(rng, (5, 20, 64), "bfloat16")
    wide[[0, -1]] = np.nan
    rhs = np.resize([1, -1, 2, 3, 0, 2**31 - 1, -(2**31)], n_pairs).astype(np.int32)
    x, lhs = floats(rng, (n_pairs, 2, 64)), np.arange(n_pairs, dtype=np.int32)
    inside = (rhs >= 0) & (rhs < 3)
    packed = on_device(device, weight(rng, (5, 20, 64), FORMS["4 bits"], "bfloat16"))
    packed.scales[[0, -1]] = float("nan")
    middle = Packed(packed.codes[1:-1], packed.scales[1:-1], packed.biases[1:-1], 4, 64)
    given = on(device, x), on(device, lhs), on(device, rhs)
    found = {
        "plain": off(cuda.gather_mm(given[0], on(device, wide)[1:-1].mT, *given[1:], False)),
        "packed": off(cuda.gather_qmm(given[0], middle, *given[1:], True, False)),
    }
    for name, product in found.items():
        assert np.isfinite(product).all(), name
        assert (product[~inside] == 0).all(), name
        assert (product[inside] != 0).all(), name
    expected = gather_mm_reference(x[inside], wide[1:-1].swapaxes(1, 2), None, rhs[inside])
    assert_within(found["plain"][inside], expected, Limit(bound("float32", 64)) + TWO_PARTS)


def test_a_matrix_too_large_to_find_the_way_in_is_refused() -> None:
    """Stacks may be larger by far; of these tensors only the shapes exist."""
    from coterie.backends.cuda.stacks import stack_of

    def nothing(*shape: int) -> Any:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    assert stack_of(nothing(9, (1 << 15) - 1, 1 << 16)).n_experts == 9
    with pytest.raises(CapacityError, match=r"has 32768 rows of 65536 stored elements.*parts of its rows"):
        stack_of(nothing(1 << 15, 1 << 16))
