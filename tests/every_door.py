"""Each public operation called once with arrays of one library, for comparing that library with NumPy."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import coterie
from array_kinds import floats, pack
from coterie import Experts, Packed
from coterie.formats import Format
from coterie.ops.dispatch import numpy_dtype

Give = Callable[[np.ndarray], Any]

FOUR_BITS = Format.resolve("affine", 4, 32)


def packed(give: Give, w: np.ndarray, fmt: Format = FOUR_BITS) -> Packed:
    """w, quantised, its parts given to the library."""
    made = pack(w, fmt)
    parts = [None if part is None else give(part) for part in (made.codes, made.scales, made.biases)]
    return Packed(*parts, fmt.bits, fmt.group_size, fmt.mode)


def calls(give: Give, dtype: str) -> Iterator[tuple[str, Callable[[], tuple[Any, ...]]]]:
    """(name, call) of every operation; activations have `dtype`. A call gives a tuple of arrays."""
    rng = np.random.default_rng(7)
    x, gate = (give(floats(rng, (6, 64), dtype)) for _ in range(2))
    logits, scale = give(floats(rng, (6, 5))), give(np.abs(floats(rng, (5,), dtype)))
    ids, probs = give(np.array([[2, 0], [1, 1], [4, 3]])), give(np.abs(floats(rng, (3, 5))))
    outputs, weights = give(floats(rng, (3, 2, 64), dtype)), give(np.abs(floats(rng, (3, 2))))
    matrix, stack = give(floats(rng, (8, 64), dtype)), give(floats(rng, (5, 64, 8), dtype))
    few = packed(give, floats(rng, (8, 64)))
    gates, ups, downs = (packed(give, floats(rng, size, scale=0.2)) for size in ((5, 32, 64), (5, 32, 64), (5, 64, 32)))
    experts = Experts(gates, ups, downs, down_bias=give(floats(rng, (5, 64), dtype)))
    nothing = give(np.zeros((0, 64), numpy_dtype(dtype)))

    def routed() -> Any:
        return coterie.route(logits, 2, per_expert_scale=scale)

    def groups_of(groups: Any) -> tuple[Any, ...]:
        return groups.order, groups.offsets, groups.inverse

    yield "glu", lambda: (coterie.glu(gate, x, "gelu_tanh"), coterie.glu(nothing, nothing))
    yield "glu_fused", lambda: (coterie.glu_fused(x[1::2]),)
    yield "quantize", lambda: coterie.quantize(x, 32)
    yield "dequantize", lambda: (coterie.dequantize(few.codes, few.scales, few.biases, 32, 4, dtype="bfloat16"),)
    yield "route", lambda: (routed().ids, routed().weights)
    yield "group", lambda: groups_of(coterie.group(ids, 5)) + groups_of(coterie.group(routed(), 5))
    yield "gather_topk_weights", lambda: (coterie.gather_topk_weights(probs, ids, scale, 2).weights,)
    yield "weighted_sum", lambda: (coterie.weighted_sum(outputs, weights),)
    yield "accumulate", lambda: (coterie.accumulate(give(np.ones((6, 64), np.float32)), x, scale[:1]),)
    yield "matvec", lambda: (coterie.matvec(matrix, x[0]),)
    yield "quantized_matmul", lambda: (coterie.quantized_matmul(x, few),)
    yield "gather_qmm", lambda: (coterie.gather_qmm(x[:, None], gates, rhs_indices=routed().ids[:, 0]),)
    yield "gather_mm", lambda: (coterie.gather_mm(x[None], stack),)
    yield "moe", lambda: (coterie.moe(x, routed(), experts, "exact"),)
