"""How far the rows of a pass are turned: cosines and sines of their positions."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def rotation_kernel(
    positions, frequencies, cos, sin, amplitude, N_PAIRS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    """Program: a row. Angles are f32 products, as in the implementations that models are trained with."""
    row = tl.program_id(0).to(tl.int64)
    pairs = tl.arange(0, BLOCK)
    inside = pairs < N_PAIRS
    frequency = tl.load(frequencies + pairs, mask=inside, other=0.0)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    angles = (tl.load(positions + row).to(tl.float32) * frequency).to(tl.float64)
    tl.store(cos + row * N_PAIRS + pairs, (tl.cos(angles) * amplitude).to(tl.float32), mask=inside)
    tl.store(sin + row * N_PAIRS + pairs, (tl.sin(angles) * amplitude).to(tl.float32), mask=inside)
