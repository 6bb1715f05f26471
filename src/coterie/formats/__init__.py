"""How codes, scales and biases become numbers: the quantisation formats of MLX, bit for bit."""

from coterie.formats.packed import Packed
from coterie.formats.spec import AFFINE_BITS, AFFINE_GROUP_SIZES, MODES, Format, Mode

__all__ = ["AFFINE_BITS", "AFFINE_GROUP_SIZES", "MODES", "Format", "Mode", "Packed"]
