"""Threads that share small pieces of work, spin briefly between jobs and then sleep.

A job is a C callback `void(int64* arguments, int64 unit, int64 thread)` that is called once for each unit 0..n_units-1.
Every thread has a run of neighbouring units, so that it reads memory in one linear stream; one that is through with its
own takes from the others'. The caller works too: a helper that the system does not schedule delays nothing but the unit
it holds, so a busy machine slows the work down in proportion instead of stopping it at a barrier. Several jobs in a row
(the phases of one operation) are one call.

One job at a time: a second Python thread waits for the pool, without the GIL held by anybody. A forked child gets new
helpers.
"""

import atexit
import itertools
import os
import threading
from collections.abc import Sequence

import numpy as np

from coterie.backends.cpu.atoms import (
    atomic_add,
    atomic_exchange,
    atomic_load,
    call_job,
    cond_broadcast,
    cond_init,
    cond_wait,
    load_i64,
    mutex_init,
    mutex_lock,
    mutex_unlock,
    pause,
    store_i64,
)
from coterie.backends.cpu.jit import njit
from coterie.errors import ArgumentError

# Places in the shared block, in 8-byte words. Words that different threads write stand on cache lines of their own.
_FUNCTION, _ARGUMENTS, _UNITS = 0, 1, 2
_THREADS = 16
_INSIDE = 32  # helpers that are between looking at a job and having left it
_OPEN = 48  # 1 while the job may be entered
_EPOCH = 64  # rises with every job
_SLEEPERS = 80
_STOP = 96
_MUTEX, _CONDITION = 112, 144
_NEXT = 176  # for each thread, on a cache line of its own: the next unit to take of its run

_LINE = 64
"""Bytes of a cache line."""

_ARGUMENT_WORDS = 512
"""Room for the arguments of all jobs of one run."""

_SPINS = 3000
"""Turns of the pause loop before a helper sleeps: some 50 to 100 microseconds, the usual gap between two operations."""


@njit
def _initialise(block):
    mutex_init(block + 8 * _MUTEX, 0)
    cond_init(block + 8 * _CONDITION, 0)


@njit
def _take_units(block, thread):
    """Thread t's run is units t * n_units // n_threads and so on; the others' runs are taken from in turn after it."""
    function, arguments, units = load_i64(block, _FUNCTION), load_i64(block, _ARGUMENTS), load_i64(block, _UNITS)
    n_threads = load_i64(block, _THREADS)
    for turn in range(n_threads):
        owner = (thread + turn) % n_threads
        end = (owner + 1) * units // n_threads
        # Looking first is cheaper where a run is through: all threads can hold the line at once.
        while atomic_load(block, _NEXT + 8 * owner) < end:
            unit = atomic_add(block, _NEXT + 8 * owner, 1)
            if unit < end:
                call_job(function, arguments, unit, thread)


@njit
def _await_epoch(block, seen):
    """Spin, then sleep, until a job newer than `seen` was announced; its epoch."""
    for _ in range(_SPINS):
        epoch = atomic_load(block, _EPOCH)
        if epoch != seen:
            return epoch
        pause()
    mutex_lock(block + 8 * _MUTEX)
    atomic_add(block, _SLEEPERS, 1)
    epoch = atomic_load(block, _EPOCH)
    while epoch == seen:
        cond_wait(block + 8 * _CONDITION, block + 8 * _MUTEX)
        epoch = atomic_load(block, _EPOCH)
    atomic_add(block, _SLEEPERS, -1)
    mutex_unlock(block + 8 * _MUTEX)
    return epoch


@njit
def _help(block, thread, seen):
    """A helper's life. It registers as inside *before* it looks whether the job is open, so that the caller, who closes
    the job before it counts who is inside, can never change a job under a helper's eyes.
    """
    while True:
        seen = _await_epoch(block, seen)
        if atomic_load(block, _STOP) != 0:
            return
        atomic_add(block, _INSIDE, 1)
        if atomic_load(block, _OPEN) != 0:
            _take_units(block, thread)
        atomic_add(block, _INSIDE, -1)


@njit
def _announce(block):
    atomic_add(block, _EPOCH, 1)
    if atomic_load(block, _SLEEPERS) != 0:
        mutex_lock(block + 8 * _MUTEX)
        cond_broadcast(block + 8 * _CONDITION)
        mutex_unlock(block + 8 * _MUTEX)


@njit
def run_phases(block, phases, n_phases):
    """Run jobs one after the other; `phases` holds the four words of each `Phase`. The pool must be held."""
    for phase in range(n_phases):
        units = load_i64(phases, 4 * phase + 2)
        store_i64(block, _FUNCTION, load_i64(phases, 4 * phase))
        store_i64(block, _ARGUMENTS, load_i64(phases, 4 * phase + 1))
        store_i64(block, _UNITS, units)
        n_threads = load_i64(block, _THREADS)
        for thread in range(n_threads):
            atomic_exchange(block, _NEXT + 8 * thread, thread * units // n_threads)
        if units > 1 and load_i64(phases, 4 * phase + 3) != 0:
            atomic_exchange(block, _OPEN, 1)
            _announce(block)
        _take_units(block, 0)
        atomic_exchange(block, _OPEN, 0)
        while atomic_load(block, _INSIDE) != 0:
            pause()


@njit
def _stop(block):
    atomic_exchange(block, _STOP, 1)
    _announce(block)


Phase = tuple[int, int, int, bool]
"""A job: the addresses of its callback and of its arguments, its units, and whether other threads are worth waking."""


def address_of(array: np.ndarray) -> int:
    """The address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def aligned(address: int) -> int:
    """The next address on a cache line's border."""
    return -(-address // _LINE) * _LINE


_generations = itertools.count()


class Pool:
    """`n_threads - 1` helpers and the calling thread.

    block: address of what they share. generation: another number, in no other pool, whenever a buffer has moved, so
    that addresses can be remembered.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._memory = np.zeros(_NEXT + 8 * n_threads + 8, np.int64)
        self.block = aligned(address_of(self._memory))
        self._memory[(self.block - address_of(self._memory)) // 8 + _THREADS] = n_threads
        # Whoever uses the buffers for several steps holds it from the first to the last.
        self.lock = threading.RLock()
        self.generation = next(_generations)
        self._buffers: dict[str, tuple[int, int, np.ndarray]] = {}
        self._arguments = np.zeros(_ARGUMENT_WORDS, np.int64)
        self._arguments_at = address_of(self._arguments)
        self._placed = 0
        _initialise(self.block)
        self._helpers = [
            threading.Thread(target=_help, args=(self.block, thread, 0), name=f"coterie-{thread}", daemon=True)
            for thread in range(1, n_threads)
        ]
        for helper in self._helpers:
            helper.start()

    def place(self, words: Sequence[int]) -> int:
        """Copy integers to where jobs can read them; their address, valid until the next `run` has returned.

        The pool must be held. Filling memory whose address is known costs a fraction of making an array for each call.
        """
        begin, end = self._placed, self._placed + len(words)
        self._arguments[begin:end] = words
        self._placed = end
        return self._arguments_at + 8 * begin

    def run(self, *phases: Phase) -> None:
        """Run jobs in order. The pool is held for the time, unless the caller holds it already."""
        with self.lock:
            words = self.place([word for phase in phases for word in phase])
            self._placed = 0
            run_phases(self.block, words, len(phases))

    def buffer(self, name: str, n_bytes: int) -> int:
        """The address of at least `n_bytes` bytes of scratch memory on a cache line's border, valid while the pool is
        held.

        It is kept for the next call under this name and grows when more is asked for; its content is undefined.
        """
        held = self._buffers.get(name)
        if held is None or held[0] < n_bytes:
            capacity = n_bytes + n_bytes // 4
            memory = np.full(capacity + _LINE, 0xFF, np.uint8)
            held = self._buffers[name] = (capacity, aligned(address_of(memory)), memory)
            self.generation = next(_generations)
        return held[1]

    def close(self) -> None:
        """End the helpers; the pool is not usable afterwards."""
        with self.lock:
            _stop(self.block)
        for helper in self._helpers:
            helper.join()


_pool: Pool | None = None
_pool_lock = threading.Lock()
_requested_threads: int | None = None


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def get_pool() -> Pool:
    """The process's pool, made at first use: as many threads as cores that this process may use."""
    global _pool
    if _pool is None:
        with _pool_lock:
            if _pool is None:
                _pool = Pool(_requested_threads or _usable_cores())
    return _pool


def set_num_threads(n_threads: int | None) -> None:
    """Use `n_threads` threads from the next operation on; None means one for each usable core."""
    global _pool, _requested_threads
    if n_threads is not None and (
        isinstance(n_threads, bool) or not isinstance(n_threads, int) or not 1 <= n_threads <= 1024
    ):
        raise ArgumentError(f"n_threads is {n_threads!r}, expected an integer from 1 to 1024, or None for one a core")
    with _pool_lock:
        _requested_threads = n_threads
        pool, _pool = _pool, None
    if pool is not None:
        pool.close()


def _shut_down() -> None:
    if _pool is not None:
        _pool.close()


def _forget() -> None:
    # In a forked child the helpers do not exist and the lock may be held by a thread that does not exist either.
    global _pool, _pool_lock
    _pool, _pool_lock = None, threading.Lock()


atexit.register(_shut_down)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
