"""Codes to words and back: one little-endian bit stream a row, whatever the width of a code.

Code i of a row occupies bits [i * bits, (i + 1) * bits) of the row's stream, least significant bit first; the stream
is cut into little-endian 32-bit words. Eight codes always fill `bits` whole bytes, so eight codes are the unit of work
here: they meet in one 64-bit integer, whose low `bits` bytes are the stream. Codes 0, 1, 2, ... of 3 bits start with
the word 0x88fac688.
"""

import numpy as np

from coterie.errors import ArgumentError

_UNIT = 8
_U64 = np.dtype("<u8")
_U32 = np.dtype("<u4")


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., n], each below 2**bits, to words uint32 [..., n * bits / 32]. n * bits must be a multiple of 32."""
    n = codes.shape[-1]
    if n * bits % 32:
        raise ArgumentError(
            f"a row of {n} codes of {bits} bits ends inside of a 32-bit word; expected whole words", code="packing"
        )
    units = codes.reshape(*codes.shape[:-1], n // _UNIT, _UNIT)
    stream = np.zeros(units.shape[:-1], _U64)
    for i in range(_UNIT):
        stream |= units[..., i].astype(_U64) << np.uint64(i * bits)
    octets = stream[..., None].view(np.uint8)[..., :bits]
    packed = np.ascontiguousarray(octets).reshape(*codes.shape[:-1], n * bits // 8)
    return packed.view(_U32).astype(np.uint32, copy=False)


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """Words uint32 [..., W] to codes uint8 [..., W * 32 / bits]. W * 32 must hold whole codes, eight by eight."""
    n = words.shape[-1] * 32 // bits
    if n * bits != words.shape[-1] * 32 or n % _UNIT:
        raise ArgumentError(
            f"{words.shape[-1]} words do not hold a whole number of eights of {bits}-bit codes", code="packing"
        )
    octets = np.ascontiguousarray(words.astype(_U32, copy=False)).view(np.uint8)
    padded = np.zeros((*words.shape[:-1], n // _UNIT, _UNIT), np.uint8)
    padded[..., :bits] = octets.reshape(*words.shape[:-1], n // _UNIT, bits)
    stream = padded.view(_U64)[..., 0]
    mask = np.uint64((1 << bits) - 1)
    codes = padded if bits == _UNIT else np.empty(padded.shape, np.uint8)
    if bits != _UNIT:
        for i in range(_UNIT):
            codes[..., i] = (stream >> np.uint64(i * bits)) & mask
    return codes.reshape(*words.shape[:-1], n)
