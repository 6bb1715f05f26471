"""Kernels compiled ahead, each case in a process of its own: Triton compiles one after the other, and keeps what it
compiled in a folder that all processes share.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context

import torch

from coterie.backends.cuda.launch import INTERPRETED
from coterie.bench.cuda import entrants
from coterie.bench.cuda.clock import device
from coterie.bench.cuda.device import free_bytes
from coterie.bench.cuda.layers import Maker, plan
from coterie.bench.shapes import Shape
from coterie.formats import Format

Call = Callable[[], object]
Progress = Callable[[str], None]

Variant = tuple[Shape, str, Format | None]
"""A shape, and a format of its weights by name."""

_FEWEST = 2
"""Calls from which on processes are worth their start."""

_PROCESS_BYTES = 3 << 30
"""The GPU's memory that a process takes besides weights."""


def compile_ahead(variants: Sequence[Variant], tokens: Sequence[int], progress: Progress) -> None:
    """Call every layer with every number of tokens."""
    # The same number of tokens side by side: other numbers of a variant have some of their kernels from it.
    pairs = itertools.product(sorted(tokens, reverse=True), variants)
    calls = [partial(call_once, shape, fmt, n) for n, (shape, _, fmt) in pairs]
    rehearse(calls, max(plan(shape, fmt, 0, 0).layer_bytes for shape, _, fmt in variants), progress)


def rehearse(calls: Sequence[Call], most_bytes: int, progress: Progress) -> None:
    """Make the calls, each of which takes at most so many bytes of the GPU's memory, in as many processes as there are
    cores and memory for. Without a GPU, and for very few calls, nothing is done.
    """
    if INTERPRETED.value or len(calls) < _FEWEST:
        return
    fitting = free_bytes(device()) // (most_bytes + _PROCESS_BYTES)
    n_workers = max(1, min(len(calls), fitting, os.cpu_count() or 1))
    progress(f"kernels of {len(calls)} calls, in {n_workers} processes")
    with ProcessPoolExecutor(n_workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(call) for call in calls]
        failures = [str(done.exception()) for done in as_completed(waiting) if done.exception() is not None]
    if failures:
        first_line = failures[0].partition("\n")[0]
        progress(f"{len(failures)} of these calls failed, and will be tried again when they are measured: {first_line}")


def call_once(shape: Shape, fmt: Format | None, n_tokens: int) -> None:
    """Make a layer, call it, and forget it."""
    maker = Maker(device())
    layer = entrants.own_layer(maker.experts(shape, fmt), shape)
    layer(maker.numbers(n_tokens, shape.hidden, dtype=torch.bfloat16), maker.numbers(n_tokens, shape.n_experts))
    if maker.place.type == "cuda":
        torch.cuda.synchronize(maker.place)
        del layer
        torch.cuda.empty_cache()
