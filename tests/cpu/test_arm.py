"""The kernels compiled for 64-bit ARM by LLVM, wherever the tests run: valid code, and vector code.

Proven: the emitters produce code for four lanes with fused multiply-adds on vector registers and without calls into a
library. Not proven: speed, and results on such a machine.
"""

import re

import pytest
from llvmlite import binding, ir

from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.kernels.decode import decode_fields
from coterie.backends.cpu.kernels.dot import _DotRow
from coterie.backends.cpu.kernels.gemm import _multiply
from coterie.backends.cpu.kernels.vector import Vectors
from coterie.backends.cpu.layout import Layout

NEON = next(isa for isa in ISAS if isa.name == "neon")
LAYOUTS = [
    Layout("affine", 4, 64, "bf16", NEON),
    Layout("affine", 8, 64, "f16", NEON),
    Layout("affine", 3, 32, "f32", NEON),
    Layout("e2m1", 4, 32, "e8m0", NEON),
    Layout("e4m3", 8, 32, "e8m0", NEON),
    Layout("bf16", 16, 0, "none", NEON),
]


def assembly(emit, n_arguments: int) -> str:  # type: ignore[no-untyped-def]
    """The ARM assembly of a function of `n_arguments` integers whose body `emit(builder, arguments)` writes."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    module = ir.Module("kernel")
    module.triple = triple
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * n_arguments)
    function = ir.Function(module, kind, "kernel")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    emit(builder, function.args)
    builder.ret_void()
    machine = binding.Target.from_triple(triple).create_target_machine(cpu="neoverse-n1", opt=3)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return str(machine.emit_assembly(parsed))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.kind}{layout.bits}")
@pytest.mark.parametrize("n_tokens", [1, 4])
def test_dot_products(layout: Layout, n_tokens: int) -> None:
    names = ("codes", "scales", "biases", "n_inputs", "inputs", "out", "out_stride")
    text = assembly(
        lambda builder, args: _DotRow(builder, layout, n_tokens, dict(zip(names, args, strict=True))).emit(), len(names)
    )
    assert re.search(r"\bfmla\s+v\d+\.4s", text), text
    assert not re.search(r"\bbl\s", text), "a call into a library"


def test_tiles_keep_their_sums_in_registers() -> None:
    text = assembly(lambda builder, args: _multiply(Vectors(builder, NEON), NEON.tile_tokens, list(args)), 7)
    products = re.findall(r"\bfmla\s+v\d+\.4s", text)
    assert len(products) >= NEON.tile_rows * NEON.tile_tokens
    inner = max(re.split(r"^\.LBB\S+:", text, flags=re.M), key=lambda part: len(re.findall(r"\bfmla\s", part)))
    assert not re.search(r"\bstr\s+q\d+, \[sp", inner), "a sum is spilled inside of the loop"


def test_codes_become_floats_without_leaving_vector_registers() -> None:
    layout = LAYOUTS[0]

    def emit(builder, args):  # type: ignore[no-untyped-def]
        v = Vectors(builder, NEON)
        for place, field in enumerate(decode_fields(v, layout, args[0])):
            v.store(field, v.at(args[1], 16 * place))

    text = assembly(emit, 2)
    assert len(re.findall(r"\b[su]cvtf\s+v\d+\.4s", text)) == layout.fields
    assert not re.search(r"\b(u|s)mov\b", text)
