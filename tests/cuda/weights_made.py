"""Random matrices and experts as NumPy arrays and as tensors, and how far products with them may be from float64.

An activation is the sum of one or two bfloat16 numbers. Rounding to bfloat16 costs an element at most 2^-8 of it, and
2^-9 in root mean square; what two numbers leave out is at most 2^-16, and 2^-17. A sum over many elements is off by as
much as they are. Everything else is f32: codes are summed with the constants in them that they were hidden in, so the
sums are larger than the result by the `stretch` of the matrix, and so is their rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest

from array_kinds import floats, pack
from coterie import Experts, Packed
from coterie.formats import Format
from coterie.ops import dequantize_reference
from coterie.ops.dispatch import numpy_dtype
from tensors import off, on
from tolerance import EPS, assert_close, bound, errors

torch = pytest.importorskip("torch")


PLACE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where tensors are whose kernels may be run by hand."""

ON_GPU = pytest.mark.cuda
"""What takes too long by hand."""


def fewer(on_a_gpu: tuple[Any, ...], by_hand: tuple[Any, ...]) -> tuple[Any, ...]:
    """How many of something, or which, depending on who runs the kernels."""
    return on_a_gpu if PLACE == "cuda" else by_hand


@dataclass(frozen=True)
class Limit:
    """How large a relative error may be: of f32 sums, and of roundings of elements, in root mean square."""

    sums: float = 0.0
    roundings: float = 0.0

    def __add__(self, other: "Limit") -> "Limit":
        return Limit(self.sums + other.sums, self.roundings + other.roundings)


ONE_PART, TWO_PARTS = Limit(0, 2.0**-9), Limit(0, 2.0**-17)
"""What an element loses where it becomes one bfloat16 number, or two."""


def assert_within(found: np.ndarray, expected: np.ndarray, limit: Limit, *, may_be_exact: bool = False) -> None:
    """No row may be off by more than roundings cost at most, twice their root mean square; all together not by more
    than that.
    """
    assert_close(found, expected, limit.sums + 2 * limit.roundings, may_be_exact=may_be_exact)
    overall = errors(found, expected)[1]
    assert overall <= limit.sums + limit.roundings, f"{overall:.3g} overall, allowed {limit}"


Form = Format | str
"""A format, or the dtype of plain weights."""

FORMS: dict[str, Form] = {
    "4 bits": Format.resolve("affine", 4, 64),
    "8 bits": Format.resolve("affine", 8, 32),
    "3 bits": Format.resolve("affine", 3, 32),
    "2 bits": Format.resolve("affine", 2, 128),
    "mxfp4": Format.resolve("mxfp4"),
    "mxfp8": Format.resolve("mxfp8"),
    "nvfp4": Format.resolve("nvfp4"),
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
}
"""One of each way to read weights."""


BY_GROUP = {
    "4 bits": Format.resolve("affine", 4, 64),
    "4 bits, groups of 32": Format.resolve("affine", 4, 32),
    "8 bits": Format.resolve("affine", 8, 64),
    "8 bits, groups of 32": Format.resolve("affine", 8, 32),
    "mxfp4": Format.resolve("mxfp4"),
}
"""Formats that kernels for Hopper GPUs take, groups of both sizes."""


def weight(
    rng: np.random.Generator, shape: Sequence[int], form: Form, scale_dtype: str | None = None
) -> Packed | np.ndarray:
    """[..., N, K], of a width with which products keep the size of what is multiplied."""
    w = floats(rng, tuple(shape), scale=shape[-1] ** -0.5)
    return pack(w, form, "numpy", scale_dtype) if isinstance(form, Format) else w.astype(numpy_dtype(form))


def on_device(device: str, made: Any) -> Any:
    """NumPy arrays, `Packed` matrices or `Experts` as tensors on `device`; experts need the fixture `doors`."""
    if made is None or isinstance(made, np.ndarray):
        return None if made is None else on(device, made)
    if isinstance(made, Packed):
        parts = (on_device(device, part) for part in (made.codes, made.scales, made.biases))
        return Packed(*parts, made.bits, made.group_size, made.mode)
    given = {field.name: getattr(made, field.name) for field in fields(Experts) if field.init}
    return Experts(**{name: part if name == "activation" else on_device(device, part) for name, part in given.items()})


def cut_out(device: str, made: Packed) -> Packed:
    """`made` on the device, its codes in the middle of others, 4 bytes from where they could be copied in pieces."""
    given = on_device(device, made)
    flat = given.codes.view(-1)
    codes = flat.new_empty(len(flat) + 1)[1:].view(given.codes.shape)
    codes.copy_(given.codes)
    return Packed(codes, given.scales, given.biases, made.bits, made.group_size, made.mode)


def experts(
    rng: np.random.Generator, sizes: tuple[int, int, int], gate: str, *, up: str | None = None, down: str | None = None,
    fused: bool = False, biases: bool = False, activation: str = "silu", scale_dtype: str | None = None,
) -> Experts:  # fmt: skip
    """NumPy experts of sizes (E, H, I), in `FORMS`; up and down like gate if nothing is said."""
    n, hidden, inner = sizes
    rows = 2 * inner if fused else inner
    lengths = {"gate_bias": rows, "up_bias": 0 if fused else inner, "down_bias": hidden}
    return Experts(
        weight(rng, (n, rows, hidden), FORMS[gate], scale_dtype),
        None if fused else weight(rng, (n, rows, hidden), FORMS[up or gate], scale_dtype),
        weight(rng, (n, hidden, inner), FORMS[down or gate], scale_dtype),
        activation,
        **{name: floats(rng, (n, length)) for name, length in lengths.items() if biases and length},
    )


def stretch(made: Packed | np.ndarray) -> float:
    """How much larger than the weights the numbers are that are summed in their place."""
    if not isinstance(made, Packed) or made.biases is None:
        return 1.0
    from coterie.backends.cuda.kernels.codes import excess

    weights = dequantize_reference(made)
    grouped = weights.reshape(*made.scales.shape, -1)
    summed = grouped - made.biases[..., None] + excess("affine", made.format.bits) * made.scales[..., None]
    return float(np.sqrt(np.mean(np.square(summed, dtype=np.float64)) / np.mean(np.square(weights))))


def product_limit(made: Packed | np.ndarray, parts: int) -> Limit:
    """For an f32 product with the matrix, of activations that their `parts` hold exactly."""
    factor = stretch(made)
    limit = Limit(bound("float32", made.shape[-1]) * factor)
    if parts == 1 and factor != 1:
        limit += Limit(0, factor * TWO_PARTS.roundings)  # constants and sums of activations meet with 16 digits each
    return limit + (TWO_PARTS if getattr(made, "dtype", None) == np.float32 else Limit())


def input_limit(dtype: str) -> Limit:
    """What activations lose: f32 has more digits than two bfloat16 numbers hold."""
    return TWO_PARTS if dtype == "float32" else Limit()


def output_limit(dtype: str) -> Limit:
    """What rounding a result to its dtype costs."""
    return Limit() if dtype == "float32" else Limit(0, EPS[dtype] / 4)


def layer_limit(made: Experts, dtype: str, top_k: int, *, exact: bool = False) -> Limit:
    """For a layer: activations, three matrices, hidden values, each slot's output, their sum."""
    parts = 2 if exact else parts_of(dtype)
    limit = input_limit(dtype) + output_limit(dtype) + Limit(bound("float32", top_k))
    for matrix in (made.gate, made.gate if made.up is None else made.up, made.down):
        limit += product_limit(matrix, parts)
    return limit + (ONE_PART + ONE_PART if parts == 1 else TWO_PARTS)


def summed(found: Any) -> np.ndarray:
    """What experts give, [T, H], summed as a decoder sums it."""
    import torch

    from coterie.backends.cuda.arranged import Wishes
    from coterie.backends.cuda.decoder.elementwise import add_norms

    nothing = torch.zeros((len(found.weights), found.values.shape[1]), device=found.values.device)
    return off(add_norms(nothing, [(found, None)], None, None, [], 1e-6, Wishes())[0])


def parts_of(dtype: str) -> int:
    """How many bfloat16 numbers an activation is the sum of."""
    return 1 if dtype == "bfloat16" else 2
