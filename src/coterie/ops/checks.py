"""Checks at the doors of the operations, and the words in which they refuse."""

from typing import Any

import numpy as np

from coterie.arrays import Array, dtype_name
from coterie.errors import ArgumentError
from coterie.ops.forms import Form

FLOATS = frozenset({"float32", "float16", "bfloat16"})
_UNSIGNED = frozenset({"uint8", "uint16", "uint32", "uint64"})
_SIGNED = frozenset({"int8", "int16", "int32", "int64"})


def float_dtype(array: Array, name: str) -> str:
    """The dtype name of `array`, which must be f32, f16 or bf16."""
    dtype = dtype_name(array)
    if dtype not in FLOATS:
        raise ArgumentError(f"{name} is {dtype}, expected float32, float16 or bfloat16; cast it first", code="dtype")
    return dtype


def promoted(first: str, second: str) -> str:
    """The dtype of a result of two float dtypes, by MLX's rule: the common one, and f32 where they differ."""
    return first if first == second else "float32"


def shape_error(message: str) -> ArgumentError:
    """An `ArgumentError` about shapes."""
    return ArgumentError(message, code="shape")


def integer_ids(ids: Array, name: str, form: Form, n: int) -> Array:
    """`ids` as the back end takes them, each known to be below `n`.

    Any integer dtype is taken; a negative id or one of `n` or more is refused. For MLX and on a GPU this reads the ids
    on the host, which waits for them to be computed. While a CUDA graph is captured nobody can wait: there the kernels
    themselves keep away from what ids out of range point to.
    """
    dtype = dtype_name(ids)
    if dtype not in _UNSIGNED and dtype not in _SIGNED:
        raise ArgumentError(f"{name} is {dtype}, expected integers; ids are unsigned 32-bit", code="dtype")
    values = form.view(ids)
    extremes = form.extremes(values)
    if extremes is not None:
        smallest, largest = extremes
        if largest >= n or smallest < 0:
            found = largest if largest >= n else smallest
            raise ArgumentError(f"{name} has id {found}, expected ids from 0 to {n - 1}", code="id_range")
    return form.ids(values)


def positive_integer(value: Any, name: str) -> int:
    """`value` as an int of 1 or more; bool and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ArgumentError(f"{name} is {value!r}, expected an integer of 1 or more", code="argument")
    return int(value)
