"""A thin layer over llvmlite for vectors of f32 and i32 lanes, so that the kernels read as arithmetic."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from coterie.backends.cpu.isa import Isa

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


class Vectors:
    """Emits vector instructions at the builder's place; addresses are i64 values."""

    def __init__(self, builder: Any, isa: Isa) -> None:
        self.builder = builder
        self.isa = isa
        self.lanes = isa.lanes
        self.floats = ir.VectorType(F32, isa.lanes)
        self.ints = ir.VectorType(I32, isa.lanes)

    def integer(self, value: int) -> Any:
        return ir.Constant(I64, value)

    def zero(self) -> Any:
        return ir.Constant(self.floats, [0.0] * self.lanes)

    def ints_of(self, value: int | Sequence[int]) -> Any:
        values = [value] * self.lanes if isinstance(value, int) else list(value)
        return ir.Constant(ir.VectorType(I32, len(values)), values)

    def floats_of(self, value: float) -> Any:
        return ir.Constant(self.floats, [value] * self.lanes)

    def call(self, name: str, result: Any, args: Sequence[Any]) -> Any:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), args)

    def at(self, base: Any, offset: Any) -> Any:
        """Address arithmetic in bytes; `offset` is an int or an i64 value."""
        return self.builder.add(base, self.integer(offset) if isinstance(offset, int) else offset)

    def load(self, kind: Any, address: Any) -> Any:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=1)

    def load_masked(self, kind: Any, address: Any, n_valid: Any, fill: int | None = None) -> Any:
        """The first `n_valid` (i64) elements at `address`, the rest `fill` or zero; nothing behind them is read."""
        count = kind.count
        lane = ir.Constant(ir.VectorType(I64, count), list(range(count)))
        mask = self.builder.icmp_signed("<", lane, self.splat(n_valid, count))
        pointer = self.builder.inttoptr(address, kind.as_pointer())
        name = f"llvm.masked.load.v{count}{_suffix(kind.element)}.p0"
        others = ir.Constant(kind, None if fill is None else [fill] * count)
        return self.call(name, kind, [pointer, ir.Constant(I32, 1), mask, others])

    def prefetch(self, address: Any, level: int = 1) -> None:
        """Ask for the cache line at an address that may be anywhere, up to the cache of a level, 1 or 2; nothing
        happens where there is no memory.
        """
        pointer = self.builder.inttoptr(address, I8.as_pointer())
        arguments = [pointer, ir.Constant(I32, 0), ir.Constant(I32, 4 - level), ir.Constant(I32, 1)]
        self.call("llvm.prefetch.p0", ir.VoidType(), arguments)

    def splat(self, scalar: Any, count: int | None = None) -> Any:
        kind = ir.VectorType(scalar.type, count or self.lanes)
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.shuffle(single, [0] * (count or self.lanes))

    def shuffle(self, vector: Any, indices: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), self.ints_of(indices))

    def permute(self, floats: Any, indices: Any) -> Any:
        """Lane l of the result is lane indices[l] of `floats`."""
        name = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}[self.lanes]
        return self.call(name, self.floats, [floats, indices])

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, fused where the machine fuses."""
        if self.isa.fused:
            return self.call(f"llvm.fma.v{a.type.count}f32", a.type, [a, b, c])
        return self.builder.fadd(self.builder.fmul(a, b), c)

    def sum(self, vector: Any) -> Any:
        """The sum of all lanes, in pairs."""
        while vector.type.count > 1:
            half = vector.type.count // 2
            low, high = self.shuffle(vector, range(half)), self.shuffle(vector, range(half, 2 * half))
            vector = self.builder.fadd(low, high)
        return self.builder.extract_element(vector, ir.Constant(I32, 0))

    def variable(self, initial: Any) -> Any:
        """A register-like variable that may change in loops; read and written with builder.load and builder.store."""
        return cgutils.alloca_once_value(self.builder, initial)

    def loop(self, count: Any) -> Any:
        """`with vectors.loop(n) as index:` runs the body for index = 0..n-1 (i64)."""
        return _Loop(self.builder, count)

    def for_count(self, count: Any, maximum: int, emit: Callable[[int], None]) -> None:
        """Emit a variant for each count 1..maximum and run the one that equals `count` (i64)."""
        for number in range(1, maximum + 1):
            with self.builder.if_then(self.builder.icmp_signed("==", count, self.integer(number))):
                emit(number)


class _Loop:
    def __init__(self, builder: Any, count: Any) -> None:
        self._manager = cgutils.for_range(builder, count, intp=I64)

    def __enter__(self) -> Any:
        return self._manager.__enter__().index

    def __exit__(self, *details: Any) -> Any:
        return self._manager.__exit__(*details)


def _suffix(element: Any) -> str:
    return {"float": "f32", "half": "f16"}.get(str(element), str(element))
