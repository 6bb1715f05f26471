"""How products are computed: what activations become, and the kernel that meets them.

f32     activations and products in f32, every format
int16   activations of 16 bits, a scale for each group: a layer is off by some 5e-5, for half the work
int8    activations of 8 bits, only where a caller asks for them by name: a layer is off by some 1e-2
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coterie.backends.cpu.int8_product import int8_product, prepare_int8, why_not
from coterie.backends.cpu.int16_product import has_int16, int16_product, prepare_int16
from coterie.backends.cpu.layout import Layout
from coterie.backends.cpu.prepare import Preparation, prepare_f32
from coterie.backends.cpu.product import product
from coterie.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """bits: of activations. product: the callback for a layout's key. prepare: how activations are made ready, by
    layout and row length.
    """

    name: str
    bits: int
    product: Callable[[int], Any]
    prepare: Callable[[Layout, int], Preparation]


F32 = Arithmetic("f32", 32, product, prepare_f32)
INT16 = Arithmetic("int16", 16, int16_product, prepare_int16)
INT8 = Arithmetic("int8", 8, int8_product, prepare_int8)


def arithmetic_for(precision: str, layout: Layout, what: str) -> Arithmetic:
    """The arithmetic of "exact", "default" or "int8" for a matrix; `what` it is, for the error where "int8" has no
    kernel.
    """
    if precision == "int8":
        reason = why_not(layout)
        if reason:
            raise UnsupportedError(
                f'precision="int8" was asked for, but {what}, {reason}; use precision="default" or another format',
                code="int8",
            )
        return INT8
    return INT16 if precision == "default" and has_int16(layout) else F32
