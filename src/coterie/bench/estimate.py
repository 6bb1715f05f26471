"""How fast a model can decode at most on this machine: the read bandwidth over the bytes that a token reads.

Every token reads the weights that it uses, and the keys and values of the tokens before it, once. Memory gives so many
bytes a second and no more, so decoding one sequence cannot be faster, unless the weights stay in the processor's cache.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coterie.backends.cpu.pool import get_pool
from coterie.bench.limits import Limits
from coterie.bench.machine import last_level_cache
from coterie.bench.measure import Clock, Summary, summary
from coterie.bench.subject import cache_bytes
from coterie.errors import ArgumentError
from coterie.models.architecture import Architecture
from coterie.models.description import Description

Check = Callable[[], None]

_BUFFER = 512 << 20
_PASS = 64 << 20
_SECONDS = 0.5
_LEAST_PASSES = 5


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second of linear reads. measured: the single passes behind it, None for a figure that was given."""

    byte_rate: float
    measured: Summary | None = None
    n_threads: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """The limit of decoding one sequence, when `context` tokens are in its cache.

    weight_bytes and cache_bytes: what one token reads. fits_cache: all weights together fit the processor's last cache
    (of one core, as the system states it), and decoding may then be faster than memory.
    """

    bandwidth: Bandwidth
    context: int
    weight_bytes: int
    cache_bytes: int
    fits_cache: bool

    @property
    def tokens_per_second(self) -> float:
        """The upper limit."""
        return self.bandwidth.byte_rate / (self.weight_bytes + self.cache_bytes)

    def record(self) -> dict[str, Any]:
        """Plain values for JSON; rates in bytes a second."""
        measured = self.bandwidth.measured
        return {
            "tokens_per_second": self.tokens_per_second,
            "meaning": "upper limit of decoding one sequence: bandwidth / (weight_bytes + cache_bytes)",
            "bandwidth": self.bandwidth.byte_rate,
            "bandwidth_source": "given" if measured is None else "measured",
            "bandwidth_low": None if measured is None else measured.low,
            "bandwidth_high": None if measured is None else measured.high,
            "n_threads": self.bandwidth.n_threads,
            "context": self.context,
            "weight_bytes": self.weight_bytes,
            "cache_bytes": self.cache_bytes,
            "fits_processor_cache": self.fits_cache,
        }


def estimate(architecture: Architecture, description: Description, bandwidth: Bandwidth, context: int) -> Estimate:
    """The limit for a model after `context` tokens; `ArgumentError` for more than its context holds."""
    if not 1 <= context <= architecture.context_length:
        raise ArgumentError(
            f"context is {context}, expected 1 to {architecture.context_length}, what the model's context holds",
            code="context",
        )
    return Estimate(
        bandwidth=bandwidth,
        context=context,
        weight_bytes=description.nbytes_per_token,
        cache_bytes=cache_bytes(architecture, context),
        fits_cache=description.nbytes <= last_level_cache(),
    )


def measure_bandwidth(
    check: Check = lambda: None, *, seconds: float = _SECONDS, clock: Clock = time.perf_counter, buffer: int = _BUFFER
) -> Bandwidth:
    """The machine's read bandwidth now, from about a second of linear reads with all threads: the median of the passes.

    check: called between passes; what it raises ends the measurement.
    """
    limits = Limits(buffer, min(_PASS, buffer), clock)
    limits.read(1)  # compiles
    limits.passes.clear()
    end = clock() + seconds
    while len(limits.passes) < _LEAST_PASSES or clock() < end:
        check()
        limits.read(1)
    return Bandwidth(statistics.median(limits.passes), summary(limits.passes), get_pool().n_threads)
