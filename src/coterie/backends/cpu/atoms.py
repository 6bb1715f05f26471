"""The few machine operations that Numba's Python lacks: memory by address, atomics, a pause, pthreads, a call by
address.

Addresses are 64-bit integers, as in `ndarray.ctypes.data`. Nothing here checks bounds: the callers own their ranges.
"""

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32 = ir.FloatType()

_LOADS = {"f32": (F32, types.float32, 4), "i64": (I64, types.int64, 8), "u32": (I32, types.uint32, 4)}


def _pointer(builder: Any, base: Any, index: Any, width: int, element: Any) -> Any:
    address = builder.add(base, builder.mul(index, ir.Constant(I64, width)))
    return builder.inttoptr(address, element.as_pointer())


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _make_load(name: str) -> Any:
    element, numba_type, width = _LOADS[name]

    @intrinsic
    def load(_context: Any, base: Any, index: Any) -> Any:
        def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return builder.load(_pointer(builder, args[0], args[1], width, element), align=1)

        return numba_type(types.int64, types.int64), codegen

    return load


def _make_store(name: str) -> Any:
    element, numba_type, width = _LOADS[name]

    @intrinsic
    def store(_context: Any, base: Any, index: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
            builder.store(args[2], _pointer(builder, args[0], args[1], width, element), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, numba_type), codegen

    return store


load_f32, load_i64, load_u32 = _make_load("f32"), _make_load("i64"), _make_load("u32")
store_f32, store_i64 = _make_store("f32"), _make_store("i64")


@intrinsic
def f32_pointer(_context: Any, address: Any) -> Any:
    """The address as a pointer to f32, for `numba.carray`."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], F32.as_pointer())

    return types.CPointer(types.float32)(types.int64), codegen


@intrinsic
def i64_pointer(_context: Any, address: Any) -> Any:
    """The address as a pointer to i64, for `numba.carray`."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I64.as_pointer())

    return types.CPointer(types.int64)(types.int64), codegen


@intrinsic
def u32_pointer(_context: Any, address: Any) -> Any:
    """The address as a pointer to u32, for `numba.carray`."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], I32.as_pointer())

    return types.CPointer(types.uint32)(types.int64), codegen


def _make_atomic(operation: str) -> Any:
    @intrinsic
    def atomic(_context: Any, base: Any, index: Any, value: Any) -> Any:
        def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
            return builder.atomic_rmw(operation, _pointer(builder, args[0], args[1], 8, I64), args[2], "seq_cst")

        return types.int64(types.int64, types.int64, types.int64), codegen

    return atomic


atomic_add = _make_atomic("add")
"""atomic_add(base, index, value) -> the old value; sequentially consistent, like the two below."""
atomic_exchange = _make_atomic("xchg")


@intrinsic
def atomic_load(_context: Any, base: Any, index: Any) -> Any:
    """The value at base[index], sequentially consistent."""

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0], args[1], 8, I64), "seq_cst", 8)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def pause(_context: Any) -> Any:
    """Tell the core that this is a spinning loop; nothing on machines that have no such hint."""

    def codegen(context: Any, builder: Any, _sig: Any, _args: Any) -> Any:
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            builder.call(_declare(builder, "llvm.x86.sse2.pause", ir.VoidType(), []), [])
        elif machine in ("aarch64", "arm64"):
            builder.call(_declare(builder, "llvm.aarch64.hint", ir.VoidType(), [I32]), [ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_job(_context: Any, function: Any, arguments: Any, unit: Any, thread: Any) -> Any:
    """Call the C callback at address `function` as void(int64* arguments, int64 unit, int64 thread)."""

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer(), I64, I64])
        target = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(target, [builder.inttoptr(args[1], I64.as_pointer()), args[2], args[3]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def call_product(_context: Any, function: Any, call: Any) -> Any:
    """Call the C callback at address `function` as void(int64* call)."""

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64.as_pointer()])
        target = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(target, [builder.inttoptr(args[1], I64.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _pthread(name: str, n_arguments: int) -> Any:
    return types.ExternalFunction(name, types.int32(*[types.int64] * n_arguments))


mutex_init = _pthread("pthread_mutex_init", 2)
mutex_lock = _pthread("pthread_mutex_lock", 1)
mutex_unlock = _pthread("pthread_mutex_unlock", 1)
cond_init = _pthread("pthread_cond_init", 2)
cond_wait = _pthread("pthread_cond_wait", 2)
cond_broadcast = _pthread("pthread_cond_broadcast", 1)
