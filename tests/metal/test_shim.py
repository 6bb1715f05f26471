"""The judge is judged: what a kernel must not do is found and named, and numbers are rounded as they should be."""

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core")

from coterie.arrays import bfloat16  # noqa: E402
from coterie.backends.mlx.metal import launch  # noqa: E402
from metal import emulator as emulation  # noqa: E402
from metal.emulator import Emulator, KernelError  # noqa: E402


class Probe:
    """Runs a body of Metal as a kernel with an input `x` and an output `out`, both f32."""

    def __init__(self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self._emulator, self._monkeypatch = emulator, monkeypatch

    def __call__(self, body: str, n: int = 64, threads: int = 32, n_inputs: int = 64, header: str = "") -> np.ndarray:
        texts = {"kernels/probe.metal": body, "shared/probe.metal": header}
        self._monkeypatch.setattr(launch, "source", texts.__getitem__)
        launch.compiled.cache_clear()
        (out,) = self._emulator.run(
            launch.Kernel("probe", ("x",), shared=("probe",)),
            [mx.arange(n_inputs, dtype=mx.float32)],
            {"N": n},
            grid=(n, 1),
            threadgroup=(threads, 1),
            shapes=[(n,)],
            dtypes=[mx.float32],
        )
        return np.array(out)


@pytest.fixture
def probe(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Probe:
    return Probe(emulator, monkeypatch)


GOOD = """
const uint i = thread_position_in_grid.x;
const float own[8] = {};
threadgroup float shared[32];
shared[i % 32] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
out[i] = shared[31 - i % 32] + simd_sum(x[i]) + own[i % 8];
"""


def test_a_good_kernel_runs(probe: Probe) -> None:
    found = probe(GOOD)
    lanes = np.arange(64, dtype=np.float32).reshape(2, 32)
    np.testing.assert_array_equal(found.reshape(2, 32), lanes[:, ::-1] + lanes.sum(-1, keepdims=True))


def test_collectives_of_lanes(probe: Probe) -> None:
    reductions = "simd_max(x[i]) * 100 + simd_min(x[i]) + simd_all(x[i] < 40)"
    body = f"const uint i = thread_position_in_grid.x;\nout[i] = {reductions};"
    np.testing.assert_array_equal(probe(body), np.repeat([3101.0, 6332.0], 32))


def test_the_last_threadgroup_may_be_smaller(probe: Probe) -> None:
    body = "out[thread_position_in_grid.x] = threadgroup_position_in_grid.x * 100 + thread_index_in_threadgroup;"
    np.testing.assert_array_equal(probe(body, n=40), [*range(32), *range(100, 108)])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("x[i];", "x[i + 1];"), r"x\[64\] is outside of 64"),
        (("x[i];", "x[int(i) - 1];"), r"x\[-1\] is outside of 64"),
        (("out[i]", "out[i + 1]"), r"out\[64\] is outside of 64"),
        (("out[i]", "out[i / 2]"), r"out\[\d+\] is written twice"),
        (("out[i]", "if (i < 63) out[i]"), r"lanes of a simdgroup are apart|lanes left|never written"),
        (("shared[31 -", "shared[32 -"), r"threadgroup memory \[32\] is outside of 32"),
        (("threadgroup_barrier(mem_flags::mem_threadgroup);", ""), "read without a barrier|read before it is written"),
        (("shared[i % 32] =", "shared[i % 16] ="), "written without a barrier"),
        (("shared[i % 32] = x[i];", "if (i % 32 > 0) shared[i % 32] = x[i];"), r"\[0\] is read before it is written"),
        (("+ simd_sum(x[i])", "+ (i % 2 ? simd_sum(x[i]) : simd_max(x[i]))"), "lanes of a simdgroup are apart"),
        (("threadgroup float", "if (i % 32 == 7) { return; }\nthreadgroup float"), "waits forever|lanes left"),
        (("simd_sum(x[i])", "0.5 * x[i] + double(x[i])"), "does not compile"),
        (("simd_sum(x[i])", "out[0]"), "does not compile"),
        (("simd_sum(x[i])", "float(1u << (i + 1))"), "undefined: a shift"),
        (("simd_sum(x[i])", "own[i % 9]"), "undefined: an index"),
    ],
)
def test_a_bad_kernel_is_found(probe: Probe, change: tuple[str, str], fault: str) -> None:
    assert GOOD.count(change[0]) == 1
    with pytest.raises(KernelError, match=fault):
        probe(GOOD.replace(*change))


def test_simdgroups_are_whole_at_collectives(probe: Probe) -> None:
    with pytest.raises(KernelError, match="fewer than 32 threads"):
        probe("out[thread_position_in_grid.x] = simd_sum(x[0]);", n=40)


def test_barriers_of_a_simdgroup_do_not_order_the_other_one(probe: Probe) -> None:
    body = GOOD.replace("shared[32]", "shared[64]").replace("% 32", "% 64").replace("31 -", "63 -")
    probe(body, threads=64)
    with pytest.raises(KernelError, match=r"without a barrier|before it is written"):
        probe(body.replace("threadgroup_barrier", "simdgroup_barrier"), threads=64)


def test_address_spaces_are_told_apart(probe: Probe) -> None:
    """MLX passes fewer than eight elements in the constant space: a function for device pointers cannot take them."""
    header = "METAL_FUNC float first(const device float* p) {\n    return p[0];\n}\n"
    body = "out[thread_position_in_grid.x] = first(x);"
    assert probe(body, header=header)[0] == 0
    with pytest.raises(KernelError, match="does not compile"):
        probe(body, header=header, n_inputs=7)


def test_sixteen_bit_numbers_convert_as_elsewhere(tmp_path: Path) -> None:
    """All 65,536 halves and bfloats to f32, and f32 around every boundary back."""
    if emulation.COMPILER is None:
        pytest.skip("needs GNU's g++; there is none on the path")
    source = (
        '#include "numbers.hpp"\nextern "C" {\n'
        "void wide(const half* h, const bfloat* b, float* x, float* y, size_t n) {\n"
        "    for (size_t i = 0; i < n; ++i) { x[i] = h[i]; y[i] = b[i]; }\n}\n"
        "void narrow(const float* x, half* h, bfloat* b, size_t n) {\n"
        "    for (size_t i = 0; i < n; ++i) { h[i] = half(x[i]); b[i] = bfloat(x[i]); }\n}\n}\n"
    )
    library = tmp_path / "numbers.so"
    command = [
        emulation.COMPILER,
        "-std=c++20",
        "-shared",
        "-fPIC",
        f"-I{emulation.SHIM}",
        "-x",
        "c++",
        "-",
        "-o",
        library,
    ]
    subprocess.run(command, input=source, text=True, check=True)
    functions = ctypes.CDLL(str(library))

    bits = np.arange(65_536, dtype=np.uint16)
    halves, bfloats = np.empty(65_536, np.float32), np.empty(65_536, np.float32)
    functions.wide(*map(_address, (bits, bits, halves, bfloats)), ctypes.c_size_t(65_536))
    np.testing.assert_array_equal(halves, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(bfloats, bits.view(bfloat16).astype(np.float32))

    steps = np.array([0, 1, 2, 0x7FF, 0x800, 0xFFF, 0x1000, 0x1001, 0x1FFF, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (np.arange(65_536, dtype=np.uint32)[:, None] << 16 | steps).reshape(-1).view(np.float32)
    values = values[~np.isnan(values)]
    found = np.empty(values.size, np.float16), np.empty(values.size, bfloat16)
    functions.narrow(*map(_address, (values, *found)), ctypes.c_size_t(values.size))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found[0].view(np.uint16), values.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(found[1].view(np.uint16), values.astype(bfloat16).view(np.uint16))


def _address(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
