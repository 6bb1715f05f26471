"""Adding scaled rows: where expert outputs become a token's output."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.kernels.vector import F32, Vectors


@intrinsic(prefer_literal=True)
def add_scaled(_context: Any, isa: Any, out: Any, values: Any, weight: Any, count: Any) -> Any:
    """out[i] += weight * values[i] at two addresses of f32, for i = 0..count-1; `isa` indexes `ISAS` and is literal."""
    chosen = ISAS[isa.literal_value]

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v, b = Vectors(builder, chosen), builder
        out, values, weight, count = args[1:]
        weights = v.splat(weight)
        n_vectors = b.sdiv(count, v.integer(v.lanes))
        with v.loop(n_vectors) as step:
            offset = b.mul(step, v.integer(4 * v.lanes))
            place = b.add(out, offset)
            v.store(v.fma(weights, v.load(v.floats, b.add(values, offset)), v.load(v.floats, place)), place)
        begin = b.mul(n_vectors, v.integer(v.lanes))
        with v.loop(b.sub(count, begin)) as step:
            offset = b.mul(b.add(begin, step), v.integer(4))
            place = b.add(out, offset)
            product = b.fmul(weight, v.load(F32, b.add(values, offset)))
            v.store(b.fadd(product, v.load(F32, place)), place)
        return context.get_dummy_value()

    return types.void(isa, types.int64, types.int64, types.float32, types.int64), codegen
