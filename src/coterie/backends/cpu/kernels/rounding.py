"""Activations rounded to 16 or to 8 bits: `int16_round` and `int8_round` by one name."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels import int8_round, int16_round
from coterie.backends.cpu.kernels.vector import Vectors
from coterie.backends.cpu.layout import from_key

_EMITTERS = {16: int16_round.emit_groups, 8: int8_round.emit_groups}


@intrinsic(prefer_literal=True)
def round_activations(
    _context: Any, bits: Any, key: Any, x: Any, prepared: Any, n_inputs: Any, first: Any, n_groups: Any
) -> Any:
    """Round `n_groups` groups of activations, f32 at address x, to groups first ... of the prepared row of `n_inputs`
    numbers at address `prepared`.

    An infinity or NaN makes the scale of its group infinity or NaN.
    """
    emit, layout = _EMITTERS[bits.literal_value], from_key(key.literal_value)

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        emit(Vectors(builder, layout.isa), layout, *args[2:])
        return context.get_dummy_value()

    return types.void(bits, key, *[types.int64] * 5), codegen
