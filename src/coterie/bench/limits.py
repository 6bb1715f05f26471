"""The limits of the machine, measured on the pool that the library computes with: reading memory, f32 and int8
arithmetic.

Reading is linear, into eight accumulators, and counts the bytes read and nothing else. The arithmetic rates are those
of registers alone: independent chains of multiply-adds, no memory touched. Nothing here is cached on disk: the kernels
are small and their digest is not part of the back end's.
"""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu import isa
from coterie.backends.cpu.isa import ISAS, Isa
from coterie.backends.cpu.kernels.vector import I8, I32, Vectors
from coterie.backends.cpu.pool import address_of, aligned, get_pool
from coterie.backends.cpu.prepare import JOB
from coterie.bench.measure import Clock, Summary, summary

SOURCE, CHUNK, STEPS, SINK = range(4)

_READ_ACCUMULATORS = 8
_READ_CHUNK = 1 << 20
_CHAINS = {16: 24, 8: 12, 4: 12}
"""Accumulators by lanes: enough to hide latency, few enough for the registers."""
_STEPS = 50_000
_UNITS_A_THREAD = 8
_LINE_WORDS = 8

_DOT = {
    "avx512vnni": (16, "llvm.x86.avx512.vpdpbusd.512"),
    "avxvnni": (8, "llvm.x86.avx512.vpdpbusd.256"),
    "dotprod": (4, "llvm.aarch64.neon.sdot.v4i32.v16i8"),
}
"""Extension -> (lanes of int32, the instruction that adds four products of bytes to each)."""


def _emit_read(builder: Any, kind: Isa, address: Any, n_bytes: Any) -> Any:
    """The sum of all 32-bit words, so that no load can be left out."""
    v = Vectors(builder, kind)
    width = 4 * v.lanes
    sums = [v.variable(ir.Constant(v.ints, None)) for _ in range(_READ_ACCUMULATORS)]
    with v.loop(builder.sdiv(n_bytes, v.integer(width * _READ_ACCUMULATORS))) as step:
        base = v.at(address, builder.mul(step, v.integer(width * _READ_ACCUMULATORS)))
        for place, total in enumerate(sums):
            words = v.load(v.ints, v.at(base, width * place))
            builder.store(builder.add(builder.load(total), words), total)
    result = builder.load(sums[0])
    for other in sums[1:]:
        result = builder.add(result, builder.load(other))
    return builder.extract_element(result, ir.Constant(I32, 0))


def _emit_f32(builder: Any, kind: Isa, address: Any, n_steps: Any) -> Any:
    """Chains of x = x * b + c with numbers that the compiler does not know."""
    v = Vectors(builder, kind)
    factor, addend = (v.load(v.floats, v.at(address, 64 * place)) for place in range(2))
    chains = [v.variable(v.floats_of(float(place))) for place in range(_CHAINS[kind.lanes])]
    with v.loop(n_steps):
        for chain in chains:
            builder.store(v.fma(builder.load(chain), factor, addend), chain)
    result = builder.load(chains[0])
    for other in chains[1:]:
        result = builder.fadd(result, builder.load(other))
    return builder.bitcast(v.sum(result), I32)


def _emit_int8(builder: Any, kind: Isa, address: Any, n_steps: Any) -> Any:
    """Chains of dot products of four bytes, added to int32 lanes."""
    v = Vectors(builder, kind)
    lanes, name = dot_instruction(kind)
    words, octets = ir.VectorType(I32, lanes), ir.VectorType(I8, 4 * lanes)
    first, second = (v.load(octets, v.at(address, 64 * place)) for place in range(2))
    chains = [v.variable(ir.Constant(words, None)) for _ in range(_CHAINS[lanes])]
    with v.loop(n_steps):
        for chain in chains:
            builder.store(v.call(name, words, [builder.load(chain), first, second]), chain)
    result = builder.load(chains[0])
    for other in chains[1:]:
        result = builder.add(result, builder.load(other))
    return builder.extract_element(result, ir.Constant(I32, 0))


_EMITTERS = (_emit_read, _emit_f32, _emit_int8)


def _spin(_context: Any, which: Any, kind: Any, address: Any, count: Any) -> Any:  # noqa: ARG001 - Numba types them
    """Emitter number `which` for `ISAS[kind]`, both literal."""
    emit, chosen = _EMITTERS[which.literal_value], ISAS[kind.literal_value]

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return emit(builder, chosen, args[2], args[3])

    return types.int32(which, kind, types.int64, types.int64), codegen


_spin_vectors: Any = intrinsic(prefer_literal=True)(_spin)


def dot_instruction(kind: Isa) -> tuple[int, str]:
    """(lanes, intrinsic) of the widest dot product of bytes that this machine has, no wider than `kind`; (0, "") for
    none.
    """
    for feature, (lanes, name) in _DOT.items():
        if feature in isa.machine_features() and lanes <= kind.lanes:
            return lanes, name
    return 0, ""


def _compile(which: int, kind: int) -> Any:
    # Jobs run with distinct chunks of the source; what they find is stored, one cache line a thread.
    def work(a: Any, unit: int, thread: int) -> None:
        source = a[SOURCE] + unit * a[CHUNK]
        count = a[STEPS] if a[STEPS] > 0 else a[CHUNK]
        a[SINK + _LINE_WORDS * (thread + 1)] = _spin_vectors(which, kind, source, count)

    return numba.cfunc(JOB, nopython=True, error_model="numpy")(work)


@dataclass(slots=True)
class Limits:
    """The probes; every measurement is kept in the lists, `passes` being the single ones behind `bandwidths`.
    `buffer_bytes` should exceed the caches many times over."""

    buffer_bytes: int
    pass_bytes: int
    clock: Clock = time.perf_counter
    bandwidths: list[float] = field(default_factory=list)
    passes: list[float] = field(default_factory=list)
    f32_rates: list[float] = field(default_factory=list)
    int8_rates: list[float] = field(default_factory=list)
    _buffer: np.ndarray = field(init=False)
    _kernels: dict[int, Any] = field(init=False, default_factory=dict)
    _offset: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        # Written, and so backed by pages of its own: pages never written would all be the one page of zeros.
        self._buffer = np.full(self.buffer_bytes // 8 + _LINE_WORDS, 0x0101010101010101, np.int64)
        self.pass_bytes = min(self.pass_bytes, self.buffer_bytes) // _READ_CHUNK * _READ_CHUNK

    def read(self, passes: int = 5) -> float:
        """Bytes a second of linear reads with all threads: the median of some passes."""
        begin = len(self.passes)
        for _ in range(passes):
            if self._offset + self.pass_bytes > self.buffer_bytes:
                self._offset = 0
            source = aligned(address_of(self._buffer)) + self._offset
            self._offset += self.pass_bytes
            seconds = self._run(0, source, _READ_CHUNK, 0, self.pass_bytes // _READ_CHUNK)
            self.passes.append(self.pass_bytes / seconds)
        self.bandwidths.append(statistics.median(self.passes[begin:]))
        return self.bandwidths[-1]

    def arithmetic(self) -> tuple[float, float | None]:
        """(f32 operations, int8 operations) a second; a multiply-add is two. None: no dot product of bytes here."""
        kind = isa.current()
        self.f32_rates.append(self._rate(1, _CHAINS[kind.lanes] * kind.lanes * 2))
        lanes, _ = dot_instruction(kind)
        if lanes:
            self.int8_rates.append(self._rate(2, _CHAINS[lanes] * lanes * 8))
        return self.f32_rates[-1], self.int8_rates[-1] if lanes else None

    def warm_up(self) -> None:
        """Compile, and touch everything; nothing of it is kept."""
        self.read(1)
        self.arithmetic()
        for values in (self.bandwidths, self.passes, self.f32_rates, self.int8_rates):
            values.clear()

    def summaries(self) -> dict[str, Summary | None]:
        """Everything measured so far: bytes and operations a second."""
        return {
            "read_bandwidth": summary(self.bandwidths),
            "read_pass": summary(self.passes),
            "f32_rate": summary(self.f32_rates),
            "int8_rate": summary(self.int8_rates),
        }

    def _rate(self, which: int, a_step: int) -> float:
        constants = np.full(32, 0.5, np.float32)
        n_units = _UNITS_A_THREAD * get_pool().n_threads
        return a_step * _STEPS * n_units / self._run(which, address_of(constants), 0, _STEPS, n_units)

    def _run(self, which: int, source: int, chunk: int, steps: int, n_units: int) -> float:
        pool = get_pool()
        kernel = self._kernels.get(which)
        if kernel is None:
            kernel = self._kernels[which] = _compile(which, ISAS.index(isa.current()))
        arguments = np.zeros(SINK + _LINE_WORDS * (pool.n_threads + 2), np.int64)
        arguments[[SOURCE, CHUNK, STEPS]] = source, chunk, steps
        start = self.clock()
        pool.run((kernel.address, address_of(arguments), n_units, True))
        return self.clock() - start
