"""Several matrices that meet the same rows in one launch: each product has the bits of a call of its own, and is right
against float64.
"""

import ml_dtypes
import numpy as np
import pytest

from coterie.backends.cpu import isa
from coterie.backends.cpu import linear as linear_room
from coterie.backends.cpu.decoder import verbs
from coterie.backends.cpu.isa import ISAS, runs_here
from coterie.backends.cpu.pool import get_pool
from coterie.formats import Format, Packed
from coterie.formats.codec import quantize
from models.plain_backend import PlainBackend

EPS = float(np.finfo(np.float32).eps)
N_INPUTS = 320
WEIGHTS = (
    ("affine", 4, 64, 48, "bfloat16"),
    ("affine", 4, 64, 130, "float32"),
    ("affine", 8, 32, 1, "float16"),
    ("mxfp4", 4, 32, 257, "float32"),
    ("affine", 3, 64, 20, "bfloat16"),
    ("plain", 16, 0, 33, "bfloat16"),
    ("plain", 32, 0, 16, "float32"),
)
"""(mode, bits, group size, rows, dtype of scales or of the matrix)"""


def made(mode: str, bits: int, group: int, n_rows: int, dtype: str, rng: np.random.Generator) -> Packed | np.ndarray:
    whole = rng.standard_normal((n_rows, N_INPUTS)).astype(getattr(ml_dtypes, dtype, dtype))
    if mode == "plain":
        return whole
    return Packed(*quantize(whole, Format.resolve(mode, bits, group)), bits, group, mode)


@pytest.fixture
def weights(rng: np.random.Generator) -> list[Packed | np.ndarray]:
    return [made(*parts, rng) for parts in WEIGHTS]


def biases_for(weights: list[Packed | np.ndarray], rng: np.random.Generator) -> list[np.ndarray | None]:
    return [
        rng.standard_normal(weight.shape[0]).astype(np.float32) if index % 2 else None
        for index, weight in enumerate(weights)
    ]


@pytest.mark.parametrize("n_rows", [0, 1, 4, 5, 97])
@pytest.mark.parametrize(("precision", "exact"), [("default", False), ("default", True), ("exact", False)])
def test_each_product_has_the_bits_of_its_own_call(
    weights: list[Packed | np.ndarray], n_rows: int, precision: str, exact: bool, rng: np.random.Generator
) -> None:
    x, biases, backend = rng.standard_normal((n_rows, N_INPUTS), np.float32), biases_for(weights, rng), verbs(precision)
    together = backend.linears(x, weights, biases, exact=exact)
    for weight, bias, found in zip(weights, biases, together, strict=True):
        alone = backend.linear(x, weight, exact=exact)
        assert np.array_equal(found, alone if bias is None else alone + bias)
        if exact or precision == "exact":
            expected = PlainBackend().linears(x.astype(np.float64), [weight], [bias])[0]
            np.testing.assert_allclose(found, expected, rtol=0, atol=4 * EPS * N_INPUTS)


@pytest.mark.parametrize("name", [one.name for one in ISAS if runs_here(one)])
def test_every_instruction_set(
    name: str, weights: list[Packed | np.ndarray], rng: np.random.Generator, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(isa.use)
    isa.use(name)
    x, backend = rng.standard_normal((3, N_INPUTS), np.float32), verbs()
    for weight, found in zip(weights, backend.linears(x, weights, [None] * len(weights)), strict=True):
        assert np.array_equal(found, backend.linear(x, weight))


def test_rows_that_are_no_contiguous_f32(weights: list[Packed | np.ndarray], rng: np.random.Generator) -> None:
    wide = rng.standard_normal((6, 2 * N_INPUTS)).astype(np.float32)
    for x in (wide[::2, ::2], wide[:3, :N_INPUTS], wide[:, :N_INPUTS].astype(np.float64)):
        plain = np.ascontiguousarray(x, np.float32)
        found, expected = (verbs().linears(rows, weights, [None] * len(weights)) for rows in (x, plain))
        assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_long_inputs_go_through_in_parts(
    weights: list[Packed | np.ndarray], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, biases = rng.standard_normal((3 * 96 + 2, N_INPUTS), np.float32), biases_for(weights, rng)
    whole = verbs().linears(x, weights, biases)
    monkeypatch.setattr(linear_room, "MAX_PREPARED", 1)
    for one, other in zip(whole, verbs().linears(x, weights, biases), strict=True):
        assert np.array_equal(one, other)


def test_rows_one_by_one(weights: list[Packed | np.ndarray], rng: np.random.Generator) -> None:
    x, biases, backend = rng.standard_normal((7, N_INPUTS), np.float32), biases_for(weights, rng), verbs().row_by_row
    together = backend.linears(x, weights, biases)
    for row in range(len(x)):
        for found, own in zip(together, backend.linears(x[row : row + 1], weights, biases), strict=True):
            assert np.array_equal(found[row : row + 1], own)


def test_what_is_remembered_follows_the_weights(rng: np.random.Generator) -> None:
    """Calls take turns with other partners, other biases, and buffers that have moved; nobody gets another's frame."""
    first, second, third = (made("affine", 4, 64, n_rows, "bfloat16", rng) for n_rows in (16, 32, 48))
    x, bias = rng.standard_normal((2, N_INPUTS), np.float32), np.ones(16, np.float32)
    for turn in range(3):
        for partners in ((first, second), (first, third), (first,)):
            for own_bias in (None, bias):
                found = verbs().linears(x, partners, (own_bias, *[None] * (len(partners) - 1)))
                alone = [verbs("default").linear(x, weight) for weight in partners]
                alone[0] = alone[0] if own_bias is None else alone[0] + own_bias
                assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=True))
        with get_pool().lock:
            get_pool().buffer("prepared", 1 << (18 + turn))
