"""How the numbers of a weight row lie in vector lanes, and so how activations must be ordered to meet them.

A row is read in blocks of `lanes` 32-bit words. A word holds `fields` codes; taking the same field of every word at
once costs one mask, and needs no shuffle of the weights: instead the activations of a block are reordered once for a
whole matrix, so that place j * lanes + l holds the activation of the weight that field j of lane l decodes.

Worked example, 4 bits, 4 lanes: a block is 32 codes in 4 words. Field 0 of the words holds codes 0, 8, 16, 24; field 1
holds codes 1, 9, 17, 25; so activations are laid as x0 x8 x16 x24, x1 x9 x17 x25, ...

Fields are not shifted down: field j of a 4-bit word is worth code * 2^(4 j), exactly representable, and the activation
is multiplied by 2^(-4 j) instead, exactly. Only the last field is shifted, because a conversion of signed integers
would take its top bit for a sign.
"""

import functools
from dataclasses import dataclass

import numpy as np

from coterie.backends.cpu.isa import ISAS, Isa

KINDS = ("affine", "e2m1", "e4m3", "f32", "f16", "bf16")
SCALES = ("none", "f32", "f16", "bf16", "e8m0", "e4m3")
_PLAIN_BITS = {"f32": 32, "f16": 16, "bf16": 16}


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of weight row on one instruction set. `group` weights share a scale; plain floats have group 0."""

    kind: str
    bits: int
    group: int
    scale: str
    isa: Isa

    @property
    def lanes(self) -> int:
        return self.isa.lanes

    @property
    def straddles(self) -> bool:
        """Whether codes cross the borders of 32-bit words (3, 5 and 6 bits): lanes are then cut by bytes, four codes
        each.
        """
        return self.kind == "affine" and self.bits in (3, 5, 6)

    @property
    def fields(self) -> int:
        """Codes in a lane."""
        if self.kind in _PLAIN_BITS:
            return 1
        return 4 if self.straddles else 32 // self.bits

    @property
    def block(self) -> int:
        """Weights in a block."""
        return self.fields * self.lanes

    @property
    def block_bytes(self) -> int:
        return self.block * self.bits // 8

    def position(self, field: int, lane: int) -> int:
        """The weight, counted from the block's start, that `field` of `lane` holds."""
        if self.kind == "e4m3":
            # Even bytes, then odd bytes, each in two halves: bytes are widened to f16 in pairs.
            return 2 * (self.lanes * (field % 2) + lane) + field // 2
        return lane * self.fields + field

    def field_scale(self, field: int) -> float:
        """What a decoded field must be multiplied by to be the code's value; a power of two."""
        if self.kind == "e4m3":
            return 256.0
        if self.kind != "affine" or (not self.straddles and field == self.fields - 1):
            return 1.0
        return 2.0 ** (-self.bits * field)

    def padded(self, n: int) -> int:
        """`n` rounded up to whole blocks."""
        return -(-n // self.block) * self.block

    @property
    def key(self) -> int:
        """This layout as an integer, for kernels that are specialised by literal integers."""
        parts = (KINDS.index(self.kind), self.bits, self.group // 16, SCALES.index(self.scale), ISAS.index(self.isa))
        return sum(part << (8 * place) for place, part in enumerate(parts))


@functools.cache
def from_key(key: int) -> Layout:
    """The inverse of `Layout.key`."""
    kind, bits, group, scale, isa = ((key >> (8 * place)) & 255 for place in range(5))
    return Layout(KINDS[kind], bits, group * 16, SCALES[scale], ISAS[isa])


@functools.cache
def activation_order(key: int) -> tuple[np.ndarray, np.ndarray]:
    """(order int32 [block], factor f32 [block]): place p of a block holds x[order[p]] * factor[p]."""
    layout = from_key(key)
    places = [(field, lane) for field in range(layout.fields) for lane in range(layout.lanes)]
    order = np.array([layout.position(field, lane) for field, lane in places], np.int32)
    factor = np.array([layout.field_scale(field) for field, _ in places], np.float32)
    return order, factor
