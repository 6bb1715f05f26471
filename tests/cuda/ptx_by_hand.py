"""Instructions of NVIDIA's, carried out one by one on NumPy arrays: those that kernels in Gluon have in them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cuda.memory_by_hand import BFLOAT16, Values, as_values


def _halves(word: np.ndarray, dtype: Any) -> np.ndarray:
    return word.astype(np.uint32)[..., None].view(np.uint16).view(dtype).astype(np.float64)


def _word(halves: np.ndarray, dtype: Any) -> np.ndarray:
    return halves.astype(np.float32).astype(dtype).view(np.uint16).view(np.uint32)[..., 0]


def _in_pairs(calculate: Callable[..., Any]) -> Callable[..., np.ndarray]:
    def run(dtype: Any, *words: np.ndarray) -> np.ndarray:
        return _word(calculate(*(_halves(word, dtype) for word in words)), dtype)

    return run


def _bytes_chosen(one: np.ndarray, other: np.ndarray, selector: np.ndarray) -> np.ndarray:
    octets = [(one >> (8 * i)) & 255 for i in range(4)] + [(other >> (8 * i)) & 255 for i in range(4)]
    chosen = [octets[int(selector) >> (4 * i) & 7] << (8 * i) for i in range(4)]
    return chosen[0] | chosen[1] | chosen[2] | chosen[3]


def _by_table(one: np.ndarray, two: np.ndarray, three: np.ndarray, table: np.ndarray) -> np.ndarray:
    found = np.zeros(np.broadcast_shapes(one.shape, two.shape, three.shape), np.uint32)
    for row in range(8):
        if int(table) >> row & 1:
            terms = (part if row >> (2 - i) & 1 else ~part for i, part in enumerate((one, two, three)))
            found |= np.bitwise_and.reduce(np.broadcast_arrays(*terms))
    return found


_INSTRUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shl.b32": lambda a, n: a << n,
    "shr.b32": lambda a, n: a >> n,
    "mul.lo.u32": lambda a, b: a * b,
    "lop3.b32": _by_table,
    "prmt.b32": _bytes_chosen,
}
_PAIRS = {"mul": _in_pairs(lambda a, b: a * b), "fma": _in_pairs(lambda a, b, c: a * b + c)}
_KINDS = {"f16x2": np.dtype(np.float16), "bf16x2": BFLOAT16}


def _carry_out(code: str, words: dict[str, np.ndarray]) -> None:
    """One instruction after the other, registers of 32 bits in `words`."""
    for line in code.strip("{} ").split(";"):
        name, _, rest = line.strip().partition(" ")
        if not name or name == ".reg":
            continue
        target, *sources = (part.strip() for part in rest.split(","))
        values = [words[part] if part in words else np.asarray(int(part, 0), np.uint32) for part in sources]
        kind, _, pair = name.partition(".rn.")
        words[target] = _PAIRS[kind](_KINDS[pair], *values) if pair else _INSTRUCTIONS[name](*values)


def inline_asm_elementwise(
    code: str, constraints: str, arguments: list[Values], dtype: Any, is_pure: bool, pack: int
) -> tuple[Values, ...]:
    """Instructions for two neighbours at a time, numbers of 16 bits in one register, of 32 in one each; in a pack of 1
    for one number of 32 bits.
    """
    assert is_pure
    operands: list[np.ndarray] = []
    for part in arguments:
        array = np.ascontiguousarray(part)
        assert pack == 2 or array.itemsize == 4
        operands += (
            [array]
            if pack == 1
            else [array.view(np.uint32)]
            if array.itemsize == 2
            else [array[..., ::2], array[..., 1::2]]
        )
    assert len(constraints.split(",")) == len(dtype) + len(operands)
    words = {f"${len(dtype) + i}": operand for i, operand in enumerate(operands)}
    _carry_out(code, words)
    return tuple(as_values(words[f"${i}"].astype(np.uint32).view(kind)) for i, kind in enumerate(dtype))
