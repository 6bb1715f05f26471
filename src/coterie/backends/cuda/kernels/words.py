"""The constants of groups side by side as the kernels of `stream` fetch them: those of eight rows, step by step."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def _bits_of(values, places, inside):
    """The bits of stored numbers, in words."""
    found = tl.load(values + places, mask=inside, other=0)
    if found.dtype != tl.uint8:
        found = found.to(tl.uint16, bitcast=True)
    return found.to(tl.uint32)


@triton.jit
def words_kernel(
    scales, biases, words, NG: tl.constexpr, MODE: tl.constexpr, STEPS: tl.constexpr, WORDS: tl.constexpr,
    BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """words uint32 [n, STEPS, 8, WORDS] of scales and biases [n * 8, NG]: a word is a group's scale below its bias, or
    the scales of four groups in bytes. What is behind a row's last group is 0.
    """
    eight = tl.program_id(0).to(tl.int64)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    for first in tl.range(0, STEPS * 8 * WORDS, BLOCK):
        place = first + tl.arange(0, BLOCK)
        index = place // (8 * WORDS) * WORDS + place % WORDS
        start = (eight * 8 + place // WORDS % 8) * NG
        there = place < STEPS * 8 * WORDS
        if MODE == "affine":
            inside = there & (index < NG)
            word = _bits_of(scales, start + index, inside) | (_bits_of(biases, start + index, inside) << 16)
        else:
            word = tl.zeros((BLOCK,), tl.uint32)
            for byte in tl.static_range(4):
                group = index * 4 + byte
                word |= _bits_of(scales, start + group, there & (group < NG)) << (8 * byte)
        tl.store(words + eight * (STEPS * 8 * WORDS) + place, word, mask=there)
