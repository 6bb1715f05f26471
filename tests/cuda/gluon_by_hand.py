"""Kernels in Gluon without a GPU: their Python code as it stands, run program by program on NumPy arrays.

Triton's interpreter does not know Gluon. Layouts say which thread has what, which does not change a result: here they
are nothing, but that two numbers in one register are neighbours on the last axis. What threads do at the same time, and
in what order, is not looked at.
"""

import builtins
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

import coterie
from cuda.memory_by_hand import BFLOAT16, Copies, Memory, Shared, Values, aligned, as_values, load, store, where
from cuda.ptx_by_hand import inline_asm_elementwise

SOURCES = Path(coterie.__file__).parents[1]
_KERNELS = "coterie.backends.cuda.kernels"


def permute(values: Values, order: Any) -> Values:
    return values.transpose(order)


def split(values: Values) -> tuple[Values, Values]:
    return values[..., 0], values[..., 1]


def multiplied(left: Any, right: Any, sums: Values) -> Values:
    """sums f32 plus products of matrices, each of which may be in shared memory."""
    both = (part.array if isinstance(part, Shared) else part for part in (left, right))
    one, other = (np.asarray(part).astype(np.float64) for part in both)
    return as_values((sums + one @ other).astype(np.float32))


def arange(first: int, last: int, layout: Any = None) -> Values:
    del layout
    return as_values(np.arange(first, last, dtype=np.int32))


def full(shape: Any, value: Any, dtype: Any, layout: Any = None) -> Values:
    del layout
    return as_values(np.full(tuple(shape), value, dtype))


def zeros(shape: Any, dtype: Any, layout: Any = None) -> Values:
    return full(shape, 0, dtype, layout)


def convert_layout(values: Values, _layout: Any, assert_trivial: bool = False) -> Values:
    del assert_trivial
    return values


def reshape(values: Values, shape: Any) -> Values:
    return values.reshape(tuple(shape))


def join(one: Values, other: Values) -> Values:
    return as_values(np.stack(np.broadcast_arrays(one, other), -1))


def fma(one: Any, other: Any, added: Any) -> Values:
    return as_values((np.multiply(one, other, dtype=np.float64) + added).astype(np.float32))


def warpgroup_mma(left: Any, right: Any, sums: Values, is_async: bool, use_acc: bool = True) -> Values:
    assert is_async
    return multiplied(left, right, sums if use_acc else np.zeros_like(sums))


class Number(int):
    """A whole number that is a constant of the compiler's, too."""

    value = property(int)


def constexpr(value: Any) -> Any:
    return Number(value) if type(value) is int else value


class Language(ModuleType):
    """`gl`, and as much of `tl` as kernels in Gluon call."""

    int16, int32, int64 = map(np.dtype, ("int16", "int32", "int64"))
    uint8, uint16, uint32 = map(np.dtype, ("uint8", "uint16", "uint32"))
    float16, float32, float64, bfloat16 = *map(np.dtype, ("float16", "float32", "float64")), BFLOAT16
    constexpr, tensor = staticmethod(constexpr), Values
    static_range = range = staticmethod(builtins.range)
    load, store, where, arange, full, zeros = map(staticmethod, (load, store, where, arange, full, zeros))
    permute, reshape, split, join, fma = map(staticmethod, (permute, reshape, split, join, fma))
    convert_layout, to_tensor = staticmethod(convert_layout), staticmethod(as_values)
    cdiv = staticmethod(lambda n, size: -(-n // size))
    expand_dims = staticmethod(lambda values, axis: as_values(np.expand_dims(values, axis)))
    sum = staticmethod(lambda values, axis: as_values(np.sum(values, axis, dtype=values.dtype)))
    max = staticmethod(lambda values, axis: as_values(np.max(values, axis)))
    multiple_of = staticmethod(aligned)
    inline_asm_elementwise = staticmethod(inline_asm_elementwise)
    abs, exp, exp2, minimum, maximum = map(staticmethod, (np.abs, np.exp, np.exp2, np.minimum, np.maximum))
    sqrt_rn, div_rn = map(staticmethod, (np.sqrt, np.divide))
    thread_barrier = barrier = staticmethod(lambda: None)

    class shared_memory_descriptor:  # noqa: N801
        reinterpret = None

    def __init__(self) -> None:
        super().__init__("language")
        self.program: tuple[int, int, int] = (0, 0, 0)
        self.grid: tuple[int, ...] = (1, 1, 1)
        for name in ("Blocked", "Slice", "DistributedLinear", "NVMMADistributed", "DotOperand", "Swizzled", "NVMMA"):
            suffix = "SharedLayout" if name in ("Swizzled", "NVMMA") else "Layout"
            setattr(self, name + suffix, lambda *_parts, **_named: None)

    def program_id(self, axis: int) -> Values:
        return as_values(self.program[axis], np.int32)

    def num_programs(self, axis: int) -> Values:
        return as_values(self.grid[axis], np.int32)

    @staticmethod
    def allocate_shared_memory(dtype: Any, shape: Any, _layout: Any) -> Shared:
        room = np.empty(tuple(shape), dtype)
        room.view(np.uint8).fill(0xFF)  # a NaN
        return Shared(room)


def _decorator(*functions: Any, **_options: Any) -> Any:
    """`jit`, with options or without."""
    return functions[0] if functions else lambda function: function


class Modules:
    """The kernels' modules, read anew with all of Triton replaced."""

    def __init__(self) -> None:
        self.language, self.copies, self.read = Language(), Copies(), {}
        hopper = SimpleNamespace(
            async_copy=self.copies,
            fence_async_shared=lambda: None,
            warpgroup_mma=warpgroup_mma,
            warpgroup_mma_wait=lambda _n, deps: deps if len(deps) > 1 else deps[0],
        )
        gluon = SimpleNamespace(jit=_decorator, language=self.language)
        self.fakes = {
            "triton": SimpleNamespace(
                jit=_decorator, constexpr_function=_decorator, language=self.language,
                cdiv=self.language.cdiv, next_power_of_2=lambda n: 1 << (n - 1).bit_length(),
            ),
            "triton.language": self.language,
            "triton.experimental": SimpleNamespace(gluon=gluon),
            "triton.experimental.gluon": gluon,
            "triton.experimental.gluon.language.nvidia.ampere": SimpleNamespace(mma_v2=multiplied),
            "triton.experimental.gluon.language.nvidia.hopper": hopper,
            "coterie.backends.cuda.launch": SimpleNamespace(
                SPEAKS_PTX=False, wait_for_previous=lambda _early: None, let_next_begin=lambda _early: None
            ),
        }  # fmt: skip

    def module(self, name: str) -> Any:
        if name not in self.read:
            path = SOURCES.joinpath(*name.split(".")).with_suffix(".py")
            module = self.read[name] = ModuleType(name)
            module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._found}
            exec(compile(path.read_text("utf-8"), path, "exec"), module.__dict__)
        return self.read[name]

    def _found(self, name: str, *rest: Any) -> Any:
        if name in self.fakes:
            return self.fakes[name if rest[2] else name.split(".")[0]]
        return self.module(name) if name.startswith(_KERNELS + ".") else __import__(name, *rest)


class ByHand:
    """A kernel that is called as Triton's are."""

    def __init__(self, module: str, name: str) -> None:
        self._modules = Modules()
        self._run = getattr(self._modules.module(f"{_KERNELS}.{module}"), name)
        self._options = set(inspect.signature(self._run).parameters)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            memory = Memory()
            given = [memory.pointer(part) if hasattr(part, "data_ptr") else part for part in arguments]
            named = {name: value for name, value in options.items() if name in self._options}
            self._modules.language.grid = grid
            for z, y, x in np.ndindex(*(*grid, 1, 1)[2::-1]):
                self._modules.language.program = (x, y, z)
                self._modules.copies.groups = [[]]
                self._run(*given, **named)

        return launch
