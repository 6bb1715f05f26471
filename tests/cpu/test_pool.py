"""The thread pool: every unit once, many callers, forks, sizes; and the compiled-code cache."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from numba import types

from coterie.backends.cpu import isa, jit, pool
from coterie.backends.cpu.atoms import atomic_add
from coterie.errors import ArgumentError, BackendUnavailableError

JOB = types.void(types.CPointer(types.int64), types.int64, types.int64)


def count_unit(arguments, unit, _thread):  # type: ignore[no-untyped-def]
    atomic_add(arguments[0], unit, 1)


@pytest.fixture(scope="module")
def callback() -> int:
    test_pool_callback = jit.compile_callback(JOB, count_unit)
    KEPT.append(test_pool_callback)
    return int(test_pool_callback.address)


KEPT: list[object] = []


@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_every_unit_runs_once_in_every_phase(callback: int, n_threads: int) -> None:
    pool.set_num_threads(n_threads)
    try:
        for n_units in (0, 1, 2, 3, 100, 1000):
            counts = np.zeros(1001, np.int64)
            arguments = np.array([pool.address_of(counts)], np.int64)
            phase = (callback, pool.address_of(arguments), n_units, True)
            for _ in range(20):
                pool.get_pool().run(phase, phase, phase)
            np.testing.assert_array_equal(counts[:n_units], 60)
            assert not counts[n_units:].any()
    finally:
        pool.set_num_threads(None)


def test_python_threads_share_the_pool(callback: int) -> None:
    results = []

    def work() -> None:
        counts = np.zeros(64, np.int64)
        arguments = np.array([pool.address_of(counts)], np.int64)
        for _ in range(200):
            pool.get_pool().run((callback, pool.address_of(arguments), 64, True))
        results.append(counts)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for counts in results:
        np.testing.assert_array_equal(counts, 200)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_too(callback: int) -> None:
    counts = np.zeros(8, np.int64)
    arguments = np.array([pool.address_of(counts)], np.int64)
    pool.get_pool().run((callback, pool.address_of(arguments), 8, True))
    child = os.fork()
    if child == 0:
        pool.get_pool().run((callback, pool.address_of(arguments), 8, True))
        os._exit(0 if (counts == 2).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("n_threads", [0, -1, 1.5, True, "2", 10**6])
def test_absurd_numbers_of_threads_are_refused(n_threads: object) -> None:
    with pytest.raises(ArgumentError, match="n_threads"):
        pool.set_num_threads(n_threads)  # type: ignore[arg-type]


def test_scratch_begins_on_a_cache_line_and_is_kept() -> None:
    small = pool.get_pool().buffer("test", 100)
    assert small % 64 == 0
    assert pool.get_pool().buffer("test", 50) == small
    assert pool.get_pool().buffer("test", 10_000) % 64 == 0


def test_instruction_sets_by_name() -> None:
    assert isa.describe().startswith(isa.current().name)
    with pytest.raises(BackendUnavailableError, match="no instruction set 'sse9'"):
        isa.use("sse9")
    absent = [candidate.name for candidate in isa.ISAS if not isa.runs_here(candidate)]
    for name in absent:
        with pytest.raises(BackendUnavailableError, match="lacks"):
            isa.use(name)
    try:
        isa.use("portable")
        assert "asked for by name" in isa.describe() or isa.choose("")[0].name == "portable"
    finally:
        isa.use()


def test_compiled_code_is_cached_on_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    program = (
        "from coterie.backends.cpu import isa, layout, product\n"
        "key = layout.Layout('affine', 4, 64, 'f32', isa.use('portable')).key\n"
        "print(product.product(key).cache_hits)"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    hits = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]


def test_without_a_place_for_the_cache_kernels_still_run() -> None:
    program = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes.clear()\n"
        "import numpy as np, coterie\n"
        "print(coterie.matvec(np.eye(3, dtype=np.float32), np.arange(3, dtype=np.float32)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[0. 1. 2.]"
    assert run.stderr.count("NUMBA_CACHE_DIR") == 1


def test_what_would_be_compiled_by_every_process_is_refused() -> None:
    def bound_to(helper):  # type: ignore[no-untyped-def]
        def work(arguments, unit, _thread):  # type: ignore[no-untyped-def]
            helper(arguments[0], unit, 1)

        return work

    with pytest.raises(AssertionError, match="work"):
        jit.compile_callback(JOB, bound_to(atomic_add))
