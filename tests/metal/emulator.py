"""`launch.run` without a GPU: MLX's text for the kernel as C++, compiled with the machine's compiler, over its grid."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from coterie.arrays import as_numpy, from_numpy
from coterie.backends.mlx.metal import launch
from metal import translate

SHIM = Path(__file__).resolve().parent / "shim"
FLAGS = (
    *("-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-U_FORTIFY_SOURCE"),
    # A literal without suffix is a float in Metal, and there is no double to fall into.
    *("-fsingle-precision-constant", "-Wall", "-Werror", "-Wdouble-promotion", "-Wno-unused-parameter"),
    # What the compiler watches is reported through the shim (undefined.hpp).
    "-fsanitize=shift,bounds",
)


def _gnu_compiler() -> str | None:
    path = shutil.which("g++")
    if path is None:
        return None
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    return path if "Free Software Foundation" in version else None


COMPILER = _gnu_compiler()


class KernelError(Exception):
    """The kernel did what it must not do on a GPU: the message says what and where."""


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("written", ctypes.c_void_p),
    )


class Emulator:
    """Runs kernels in place of MLX, each twice: with lanes getting their turn in rising and in falling order.

    `flush` takes subnormal f32 for zero, as GPUs may. `launches` are the names of the kernels that ran.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.flush = False
        self.launches: list[str] = []
        self._libraries: dict[str, Any] = {}

    def run(
        self,
        kernel: launch.Kernel,
        inputs: Sequence[mx.array],
        template: launch.Template,
        *,
        grid: tuple[int, int],
        threadgroup: tuple[int, int],
        shapes: Sequence[tuple[int, ...]],
        dtypes: Sequence[mx.Dtype],
    ) -> list[mx.array]:
        """What `launch.run` returns, computed at once. `KernelError` where the kernel misbehaves."""
        assert len(inputs) == len(kernel.inputs)
        self.launches.append(kernel.name)
        text = translate.generated(
            kernel,
            inputs,
            template=list(template.items()),
            grid=(*grid, 1),
            threadgroup=(*threadgroup, 1),
            output_shapes=list(shapes),
            output_dtypes=list(dtypes),
        )
        source = translate.to_cpp(text)
        given = {name: np.ascontiguousarray(as_numpy(array)) for name, array in zip(kernel.inputs, inputs, strict=True)}
        outputs = {
            name: np.zeros(shape, as_numpy(mx.zeros(1, dtype)).dtype)
            for name, shape, dtype in zip(kernel.outputs, shapes, dtypes, strict=True)
        }
        self._call(source, given, outputs, grid, threadgroup, backwards=False)
        again = {name: np.zeros_like(array) for name, array in outputs.items()}
        self._call(source, given, again, grid, threadgroup, backwards=True)
        for name, array in outputs.items():
            if array.tobytes() != again[name].tobytes():
                raise KernelError(f"{name} depends on the order in which lanes get their turn")
        return [from_numpy(array, "mlx") for array in outputs.values()]

    def _call(
        self,
        source: str,
        given: dict[str, np.ndarray],
        outputs: dict[str, np.ndarray],
        grid: tuple[int, int],
        threadgroup: tuple[int, int],
        *,
        backwards: bool,
    ) -> None:
        written = {name: np.zeros(array.size, np.uint8) for name, array in outputs.items()}
        arrays = {**given, **outputs, **_descriptions(given)}
        names = translate.buffer_names(source)
        buffers = (_Buffer * len(names))(*(_buffer(name, arrays[name], written.get(name)) for name in names))
        message = ctypes.create_string_buffer(1000)
        three = ctypes.c_uint32 * 3
        failed = self._library(source).run(
            buffers,
            three(*grid, 1),
            three(*threadgroup, 1),
            int(backwards),
            int(self.flush),
            message,
            ctypes.c_size_t(len(message)),
        )
        if failed:
            raise KernelError(message.value.decode())
        for name, counts in written.items():
            if (counts != 1).any():
                raise KernelError(f"{name}[{int(np.argmin(counts))}] is never written")

    def _library(self, source: str) -> Any:
        key = _digest(source, *FLAGS, _shim_text(), _compiler_version())
        if key not in self._libraries:
            path = self.folder / f"{key}.so"
            if not path.exists():
                _compile(source, path)
            self._libraries[key] = ctypes.CDLL(str(path))
        return self._libraries[key]


def _descriptions(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What MLX passes beside an input where the source asks for it."""
    return {f"{name}_shape": np.array(array.shape, np.int32) for name, array in given.items()}


def _buffer(name: str, array: np.ndarray, written: np.ndarray | None) -> _Buffer:
    return _Buffer(name.encode(), array.ctypes.data, array.size, None if written is None else written.ctypes.data)


def _compile(source: str, path: Path) -> None:
    scratch = path.with_suffix(f".{os.getpid()}")
    result = _command(
        *FLAGS, f"-I{_precompiled(path.parent)}", f"-I{SHIM}", "-x", "c++", "-c", "-", "-o", scratch, source=source
    )
    if result.returncode:
        raise KernelError(f"the kernel does not compile:\n{result.stderr}")
    library = path.with_suffix(f".{os.getpid()}.so")
    assert _command("-shared", str(scratch), "-o", library).returncode == 0
    scratch.unlink()
    library.replace(path)


def _precompiled(folder: Path) -> Path:
    """A folder with the shim's headers in the compiler's own form: parsing them would take half of all the time."""
    place = folder / _digest(*FLAGS, _shim_text(), _compiler_version())
    if not place.exists():
        scratch = folder / f"headers.{os.getpid()}"
        scratch.mkdir(exist_ok=True)
        precompiled = scratch / "launch.hpp.gch"
        result = _command(*FLAGS, "-x", "c++-header", SHIM / "launch.hpp", "-o", precompiled)
        assert result.returncode == 0, result.stderr
        if place.exists():
            shutil.rmtree(scratch)
        else:
            scratch.rename(place)
    return place


def _command(*arguments: Any, source: str | None = None) -> "subprocess.CompletedProcess[str]":
    assert COMPILER is not None
    command = [COMPILER, *map(str, arguments)]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=False)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


@cache
def _shim_text() -> str:
    return "".join(path.read_text("utf-8") for path in sorted(SHIM.glob("*.hpp")))


@cache
def _compiler_version() -> str:
    return f"{sys.platform} {_command('--version').stdout}"
