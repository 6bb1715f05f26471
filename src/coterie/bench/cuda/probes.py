"""Kernels that measure the machine and nothing else."""

import triton
import triton.language as tl


@triton.jit
def empty_kernel():
    """Nothing: what is left is the cost of a launch."""


@triton.jit
def read_kernel(source, sums, n_words, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Read STEPS * BLOCK words and write down their sum, so that no load can be left out."""
    first = tl.program_id(0).to(tl.int64) * (STEPS * BLOCK)
    total = tl.zeros([BLOCK], tl.int32)
    for step in tl.static_range(STEPS):
        places = first + step * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(source + places, mask=places < n_words, other=0)
    tl.store(sums + tl.program_id(0), tl.sum(total, 0))
