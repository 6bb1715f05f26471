"""From the bytes of a weight row to vectors of f32: the codes of one block, and the scales that go with them."""

from typing import Any

from llvmlite import ir

from coterie.backends.cpu.kernels.vector import F16, F32, I8, I16, I32, Vectors
from coterie.backends.cpu.layout import Layout

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_SCALE_TYPES = {"f32": F32, "f16": F16, "bf16": I16, "e8m0": I8, "e4m3": I8}
SCALE_BYTES = {"none": 0, "f32": 4, "f16": 2, "bf16": 2, "e8m0": 1, "e4m3": 1}


def decode_fields(v: Vectors, layout: Layout, address: Any, n_valid: Any | None = None) -> list[Any]:
    """The fields of the block at `address`, each an f32 vector; a field still lacks `Layout.field_scale`.

    With `n_valid` (i64), only that many weights exist: nothing behind them is read and the other lanes hold finite
    numbers.
    """
    if layout.kind in ("f32", "f16", "bf16"):
        return [_plain(v, layout, address, n_valid)]
    words = _straddling_words(v, layout, address, n_valid) if layout.straddles else _words(v, layout, address, n_valid)
    if layout.kind == "e4m3":
        return _e4m3_fields(v, words)
    if layout.kind == "e2m1":
        return [_e2m1(v, v.builder.lshr(words, v.ints_of(4 * field))) for field in range(layout.fields)]
    return [_affine_field(v, layout, words, field) for field in range(layout.fields)]


def _words(v: Vectors, layout: Layout, address: Any, n_valid: Any | None) -> Any:
    if n_valid is None:
        return v.load(v.ints, address)
    return v.load_masked(v.ints, address, v.builder.sdiv(n_valid, v.integer(layout.fields)))


def _straddling_words(v: Vectors, layout: Layout, address: Any, n_valid: Any | None) -> Any:
    """Lane l gets the bytes that hold codes 4 l .. 4 l + 3, the first of them at bit 0."""
    n_bytes, code_bits = layout.block_bytes, 4 * layout.bits
    kind = ir.VectorType(I8, n_bytes)
    if n_valid is None:
        raw = v.load(kind, address)
    else:
        raw = v.load_masked(kind, address, v.builder.sdiv(v.builder.mul(n_valid, v.integer(layout.bits)), v.integer(8)))
    starts = [code_bits * lane // 8 for lane in range(v.lanes)]
    picks = [min(start + byte, n_bytes - 1) for start in starts for byte in range(4)]
    words = v.builder.bitcast(v.shuffle(raw, picks), v.ints)
    return v.builder.lshr(words, v.ints_of([code_bits * lane % 8 for lane in range(v.lanes)]))


def _affine_field(v: Vectors, layout: Layout, words: Any, field: int) -> Any:
    mask = (1 << layout.bits) - 1
    shift = layout.bits * field
    if layout.field_scale(field) == 1.0 and shift:
        return v.builder.sitofp(v.builder.lshr(words, v.ints_of(shift)), v.floats)
    return v.builder.sitofp(v.builder.and_(words, v.ints_of(mask << shift)), v.floats)


def _e2m1(v: Vectors, nibbles: Any) -> Any:
    """Sixteen values by table; bits above the lowest four of each lane are ignored."""
    b = v.builder
    if v.isa.table == "permvar16":
        table = ir.Constant(v.floats, [*_E2M1, *(-value for value in _E2M1)])
        return v.call("llvm.x86.avx512.permvar.sf.512", v.floats, [table, nibbles])
    sign = b.shl(b.and_(nibbles, v.ints_of(8)), v.ints_of(28))
    if v.isa.table == "permps8":
        magnitude = v.call("llvm.x86.avx2.permps", v.floats, [ir.Constant(v.floats, _E2M1), nibbles])
    else:
        magnitude = _e2m1_magnitude(v, b.and_(nibbles, v.ints_of(7)))
    return b.bitcast(b.or_(b.bitcast(magnitude, v.ints), sign), v.floats)


def _e2m1_magnitude(v: Vectors, code: Any) -> Any:
    """Exponent and mantissa moved to their places in f32; code 1, the one subnormal, is 0.5."""
    b = v.builder
    normal = b.add(b.shl(code, v.ints_of(22)), v.ints_of(126 << 23))
    subnormal = b.sub(v.ints_of(0), b.and_(code, v.ints_of(1)))
    half = b.and_(subnormal, v.ints_of(126 << 23))
    return b.bitcast(b.select(b.icmp_unsigned("<", code, v.ints_of(2)), half, normal), v.floats)


def _e4m3_fields(v: Vectors, words: Any) -> list[Any]:
    """E4M3 becomes f16 by moving its bits (the value shrinks by 2^8, subnormals included), and f16 widens to f32."""
    b = v.builder
    pairs = ir.VectorType(I16, 2 * v.lanes)

    def constant(value: int) -> Any:
        return ir.Constant(pairs, [value] * (2 * v.lanes))

    raw = b.bitcast(words, pairs)
    fields = []
    for odd in (False, True):
        high = raw if odd else b.shl(raw, constant(8))
        half = b.or_(b.and_(high, constant(0x8000)), b.lshr(b.and_(high, constant(0x7F00)), constant(1)))
        for part in (0, 1):
            bits = v.shuffle(half, range(part * v.lanes, (part + 1) * v.lanes))
            fields.append(b.fpext(b.bitcast(bits, ir.VectorType(F16, v.lanes)), v.floats))
    return fields


def _plain(v: Vectors, layout: Layout, address: Any, n_valid: Any | None) -> Any:
    element = {"f32": F32, "f16": F16, "bf16": I16}[layout.kind]
    kind = ir.VectorType(element, v.lanes)
    raw = v.load(kind, address) if n_valid is None else v.load_masked(kind, address, n_valid)
    return to_floats(v, layout.kind, raw)


def to_floats(v: Vectors, kind: str, raw: Any) -> Any:
    """A vector (of any length) of f32, f16, bf16, e8m0 or e4m3 bits as f32."""
    b, count = v.builder, raw.type.count
    floats, ints = ir.VectorType(F32, count), ir.VectorType(I32, count)

    def constant(value: int) -> Any:
        return ir.Constant(ints, [value] * count)

    if kind == "f32":
        return raw
    if kind == "f16":
        return b.fpext(raw, floats)
    wide = b.zext(raw, ints)
    if kind == "bf16":
        return b.bitcast(b.shl(wide, constant(16)), floats)
    if kind == "e8m0":
        # 2^(e - 127); e = 0 is the subnormal 2^-127, which shifting alone would make zero.
        power = b.select(b.icmp_unsigned("==", wide, constant(0)), constant(1 << 22), b.shl(wide, constant(23)))
        return b.bitcast(power, floats)
    shifted = b.shl(wide, constant(7))
    half = b.or_(b.and_(b.shl(wide, constant(8)), constant(0x8000)), b.and_(shifted, constant(0x3F80)))
    narrow = b.bitcast(b.trunc(half, ir.VectorType(I16, count)), ir.VectorType(F16, count))
    return b.fmul(b.fpext(narrow, floats), ir.Constant(floats, [256.0] * count))


def group_patterns(layout: Layout) -> dict[tuple[int, ...], list[int]]:
    """Fields by the group (counted from the block's first) that each of their lanes belongs to: they share a scale
    vector.
    """
    patterns: dict[tuple[int, ...], list[int]] = {}
    for field in range(layout.fields):
        pattern = tuple(layout.position(field, lane) // layout.group for lane in range(layout.lanes))
        patterns.setdefault(pattern, []).append(field)
    return patterns


def load_scales(v: Vectors, layout: Layout, address: Any, block: Any, n_groups: Any | None = None) -> Any:
    """The f32 scales (or biases) of a block's groups, a vector of max(1, block / group) elements.

    With `n_groups` (i64, of the row) groups that do not exist are replaced by the last one that does.
    """
    b = v.builder
    element, width = _SCALE_TYPES[layout.scale], SCALE_BYTES[layout.scale]
    count = max(1, layout.block // layout.group)
    if count == 1 and layout.block < layout.group:
        first = b.sdiv(block, v.integer(layout.group // layout.block))
    else:
        first = b.mul(block, v.integer(count))
    if n_groups is None:
        raw = v.load(ir.VectorType(element, count), b.add(address, b.mul(first, v.integer(width))))
        return to_floats(v, layout.scale, raw)
    raw = ir.Constant(ir.VectorType(element, count), ir.Undefined)
    last = b.sub(n_groups, v.integer(1))
    for place in range(count):
        group = b.add(first, v.integer(place))
        group = b.select(b.icmp_signed("<", group, last), group, last)
        raw = b.insert_element(
            raw, v.load(element, b.add(address, b.mul(group, v.integer(width)))), ir.Constant(I32, place)
        )
    return to_floats(v, layout.scale, raw)


def load_floats(v: Vectors, kind: str, address: Any, n_valid: Any | None = None) -> Any:
    """`lanes` scales or biases in a row, as f32."""
    vector = ir.VectorType(_SCALE_TYPES[kind], v.lanes)
    # Where there is no scale, E8M0 stands for 1: its zero is a subnormal number, which slows arithmetic down.
    fill = 127 if kind == "e8m0" else None
    raw = v.load(vector, address) if n_valid is None else v.load_masked(vector, address, n_valid, fill)
    return to_floats(v, kind, raw)
