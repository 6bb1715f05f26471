"""The limits of a GPU: reading and copying memory, products of bf16 matrices, the launch of a kernel.

Buffers exceed the second-level cache many times over. Everything is recorded as a CUDA graph, as the layers are.
"""

import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from coterie.bench.cuda.clock import Recording
from coterie.bench.cuda.probes import empty_kernel, read_kernel
from coterie.bench.measure import Summary, summary

_STEPS, _BLOCK, _WARPS = 8, 2048, 4
_PLAYS = 3
_NAMES = ("read_bandwidth", "copy_bandwidth", "bf16_rate", "empty_kernel")


@dataclass(frozen=True, slots=True)
class Sizes:
    """buffer: bytes that are read, or copied from; matrix: rows and columns of both factors; launches: of an empty
    kernel, in one graph.
    """

    buffer: int = 2 << 30
    matrix: int = 8192
    launches: int = 200


@dataclass(slots=True)
class Limits:
    """Every measurement is kept: bytes and operations a second, and the seconds of an empty kernel.

    read_bandwidth counts the bytes read; copy_bandwidth those read and those written; bf16_rate two operations for each
    product and its addition.
    """

    place: torch.device
    sizes: Sizes = field(default_factory=Sizes)
    values: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _NAMES})

    def measure(self, repeats: int = 3) -> None:
        """Measure everything so many times. Buffers and matrices live no longer than this call."""
        self._memory(repeats)
        self._products(repeats)
        launches = Recording(self._launch, self.place)
        self.values["empty_kernel"] += [launches.seconds(_PLAYS) / self.sizes.launches for _ in range(repeats)]

    def floor(self, n_bytes: float, n_operations: float) -> float:
        """Seconds that reading so many bytes, or computing so much, takes at least: whichever is longer."""
        read, rate = (statistics.median(self.values[name]) for name in ("read_bandwidth", "bf16_rate"))
        return max(n_bytes / read, n_operations / rate)

    def summaries(self) -> dict[str, Summary | None]:
        """All limits by name."""
        return {name: summary(values) for name, values in self.values.items()}

    def _memory(self, repeats: int) -> None:
        source = torch.zeros(self.sizes.buffer // 4, dtype=torch.int32, device=self.place)
        target = torch.empty_like(source)
        self._add("read_bandwidth", source.nbytes, self._read(source), repeats)
        self._add("copy_bandwidth", 2 * source.nbytes, Recording(lambda: target.copy_(source), self.place), repeats)

    def _products(self, repeats: int) -> None:
        size = self.sizes.matrix
        left, right = (torch.randn((size, size), dtype=torch.bfloat16, device=self.place) for _ in range(2))
        out = torch.empty_like(left)
        self._add("bf16_rate", 2 * size**3, Recording(lambda: torch.mm(left, right, out=out), self.place), repeats)

    def _read(self, source: torch.Tensor) -> Recording:
        grid = (triton.cdiv(source.numel(), _STEPS * _BLOCK),)
        sums = torch.empty(grid, dtype=torch.int32, device=self.place)
        launch: Any = read_kernel[grid]
        return Recording(
            lambda: launch(source, sums, source.numel(), STEPS=_STEPS, BLOCK=_BLOCK, num_warps=_WARPS), self.place
        )

    def _launch(self) -> None:
        launch: Any = empty_kernel[(1,)]
        for _ in range(self.sizes.launches):
            launch(num_warps=1)

    def _add(self, name: str, amount: float, recording: Recording, repeats: int) -> None:
        self.values[name] += [amount / recording.seconds(_PLAYS) for _ in range(repeats)]
