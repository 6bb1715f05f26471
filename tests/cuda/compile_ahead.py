"""Compiles every kernel for a GPU that need not be here, which finds what the interpreter lets pass.

Run as a program, without TRITON_INTERPRET and with the name of a target: it calls the operations with tensors in the
CPU's memory that nobody reads, compiles what they would launch, then the decoder's kernels by their signatures, and
prints the names of the kernels, and for each that does not compile a line that begins with FAILED.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import coterie
from coterie import Experts, Packed, Routing
from coterie.arrays import kinds, numpy_as_torch
from coterie.formats import Format

TARGETS = {
    "hopper": (GPUTarget("cuda", 90, 32), (9, 0), 227 << 10),
    "ampere": (GPUTarget("cuda", 80, 32), (8, 0), 99 << 10),
    "cdna3": (GPUTarget("hip", "gfx942", 64), (9, 4), 64 << 10),
}
"""By name: the target, what PyTorch says of its capability, and the bytes of shared memory that any GPU of it has."""

FORMATS = {
    "4 bits": Format.resolve("affine", 4, 64),
    "8 bits": Format.resolve("affine", 8, 32),
    "3 bits": Format.resolve("affine", 3, 64),
    "1 bit": Format.resolve("affine", 1, 128),
    "mxfp4": Format.resolve("mxfp4"),
    "mxfp8": Format.resolve("mxfp8"),
    "nvfp4": Format.resolve("nvfp4"),
}

_HIDDEN, _INNER, _EXPERTS = 256, 256, 4


class _Driver:
    """What Triton asks a driver before it compiles."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


def report(name: str, constants: dict[str, Any], shared: int, compile_it: Callable[[], Any]) -> None:
    """Say so if a kernel does not compile, or wants more bytes of shared memory than there are."""
    try:
        wanted = compile_it().metadata.shared
        reason = f"wants {wanted} bytes of shared memory of {shared}" if wanted > shared else ""
    except Exception as failure:
        reason = repr(failure.__cause__ or failure).replace("\n", " ")[-500:]
    if reason:
        print("FAILED", name, constants, reason)


def compile_only(target: GPUTarget, capability: tuple[int, int], shared: int) -> set[str]:
    """From now on launches only compile, for `target`; the set that this returns gathers the names of the kernels."""
    names: set[str] = set()
    run = triton.JITFunction.run

    def compiled(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        del warmup
        names.add(self.fn.__name__)
        given = zip(self.params, arguments, strict=False)
        constants = {part.name: value for part, value in given if part.is_constexpr}
        report(self.fn.__name__, constants, shared, lambda: run(self, *arguments, grid=grid, warmup=True, **options))

    triton.JITFunction.run = compiled
    triton.runtime.driver.set_active(_Driver(target))
    torch.version.cuda, torch.version.hip = ("13.0", None) if target.backend == "cuda" else (None, "6.4")
    torch.cuda.init = lambda: None
    torch.cuda.get_device_capability = lambda _device=None: capability
    torch.cuda.is_current_stream_capturing = lambda: False
    kinds._KIND_OF_TENSOR[False] = "cuda"
    return names


def floats(*shape: int, dtype: str = "bfloat16") -> torch.Tensor:
    return torch.zeros(shape, dtype=getattr(torch, dtype))


def weight(form: str, *shape: int, scale_dtype: str = "bfloat16") -> Any:
    """A stack [..., N, K] in a format, or of plain numbers of the dtype that `form` names."""
    if form not in FORMATS:
        return floats(*shape, dtype=form)
    fmt, (*leading, n_columns) = FORMATS[form], shape
    codes = numpy_as_torch(np.zeros((*leading, fmt.words(n_columns)), np.uint32))
    is_affine = fmt.mode == "affine"
    scales = floats(*leading, fmt.n_groups(n_columns), dtype=scale_dtype if is_affine else "uint8")
    return Packed(codes, scales, scales.clone() if is_affine else None, fmt.bits, fmt.group_size, fmt.mode)


def simple_verbs() -> None:
    """Routing, grouping, activations, sums, dequantising."""
    for activation in ("silu", "gelu_tanh", "gelu", "relu", "swiglu_clamped"):
        coterie.glu(floats(8, 64), floats(8, 64), activation)
    weights, accumulator = floats(4, 8, dtype="float32"), floats(4, 512, dtype="float32")
    coterie.weighted_sum(floats(4, 8, 512), weights)
    coterie.accumulate(accumulator, floats(4, 512), weights[0, :1])
    coterie.accumulate(accumulator, floats(4, 512), 0.5)
    logits, vector = floats(4, 128), floats(256, dtype="float32")
    coterie.route(logits, 8)
    coterie.route(
        floats(4, 256), 6, scoring="sigmoid", n_groups=8, top_groups=4, group_score="top2",
        selection_bias=vector, per_expert_scale=vector.bfloat16(),
    )  # fmt: skip
    coterie.gather_topk_weights(logits, torch.zeros((4, 8), dtype=torch.int32), vector[:128], 8)
    for n_rows in (4096, 1 << 14):
        coterie.group(torch.zeros(n_rows, dtype=torch.int32), 128)
    for form in ("4 bits", "3 bits", "nvfp4", "mxfp8"):
        packed = weight(form, 8, 256)
        coterie.dequantize(packed.codes, packed.scales, packed.biases, packed.group_size, packed.bits, packed.mode)


def products() -> None:
    """Few rows and many times one matrix, and times those that indices name: formats and dtypes in some pairs."""
    for form, n_rows, dtype in (("4 bits", 1, "bfloat16"), ("mxfp8", 8, "float32"), ("3 bits", 9, "bfloat16")):
        coterie.quantized_matmul(floats(n_rows, _HIDDEN, dtype=dtype), weight(form, 64, _HIDDEN))
    coterie.matvec(floats(64, _HIDDEN, dtype="float32"), floats(_HIDDEN, dtype="float32"))
    some = torch.zeros(9, dtype=torch.int32)
    coterie.gather_qmm(floats(9, 1, _HIDDEN), weight("8 bits", 4, 64, _HIDDEN), rhs_indices=some)
    coterie.gather_mm(floats(9, 1, 64), floats(5000, 16, 64).mT, rhs_indices=some)
    coterie.gather_mm(floats(5000, 1, 64), floats(9, 16, 64).mT, rhs_indices=torch.zeros(5000, dtype=torch.int32))
    from coterie.backends.cuda import halves
    from coterie.backends.cuda.layer import run_dense
    from coterie.backends.cuda.linear import linears
    from coterie.backends.cuda.products import prepare
    from coterie.backends.cuda.stacks import stack_of
    from coterie.backends.cuda.tiles import halves_tile

    for form in ("4 bits", "bfloat16"):
        linears(floats(8192, _HIDDEN), [weight(form, 64, _HIDDEN)] * 2, (None, None), parts=1)
    long = stack_of(weight("4 bits", 16, 8192))
    if halves.serves(long):
        prepare(floats(9, 8192), long, 1, halves_tile(16, 16))
    gate = weight("4 bits", 64, _HIDDEN)
    run_dense(floats(2, _HIDDEN), gate, gate, weight("mxfp4", _HIDDEN, 64), "silu", 1)


def layers(every: int) -> None:
    """One token and several, around the sizes of tiles: formats, dtypes, activations in some pairs, `every`-th of them.

    Targets whose instructions are Triton's alone need fewer.
    """
    calls: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (
        (("4 bits", 1, 8), {"activation": "gelu_tanh"}),
        (("4 bits", 16), {"down": "1 bit"}),
        (("8 bits", 1, 3, "float32"), {"fused": True, "activation": "swiglu_clamped", "biases": True, "down": "mxfp8"}),
        (("mxfp4", 40), {"fused": True}),
        (("4 bits", 1), {"inner": 8448}),
        (("4 bits", 8), {"biases": True, "activation": "swiglu_clamped"}),
        (("8 bits", 20), {"scale_dtype": "float16"}),
        (("mxfp4", 12), {"fused": True}),
        (("4 bits", 30), {"inner": 8448}),
        (("3 bits", 12, 2, "float32"), {"scale_dtype": "float32"}),
        (("nvfp4", 3), {}),
        (("4 bits", 100), {"biases": True, "down": "8 bits", "scale_dtype": "float16"}),
        (("float32", 100, 2, "float32"), {"down": "bfloat16"}),
        (("bfloat16", 1700), {}),
    )
    for arguments, options in calls[::every]:
        layer(*arguments, **options)


def layer(
    form: str, n_tokens: int, top_k: int = 2, dtype: str = "bfloat16", *, fused: bool = False, biases: bool = False,
    activation: str = "silu", down: str | None = None, scale_dtype: str = "bfloat16", inner: int = _INNER,
) -> None:  # fmt: skip
    """The experts of a layer, gate and up of the same form."""
    rows = 2 * inner if fused else inner
    gate = weight(form, _EXPERTS, rows, _HIDDEN, scale_dtype=scale_dtype)
    up = None if fused else weight(form, _EXPERTS, rows, _HIDDEN, scale_dtype=scale_dtype)
    sizes = {"gate_bias": rows, "up_bias": 0 if fused else rows, "down_bias": _HIDDEN}
    named = {name: floats(_EXPERTS, size) for name, size in sizes.items() if size and biases}
    experts = Experts(gate, up, weight(down or form, _EXPERTS, _HIDDEN, inner), activation, **named)
    routing = Routing(torch.zeros((n_tokens, top_k), dtype=torch.int32), torch.zeros((n_tokens, top_k)), _EXPERTS)
    coterie.moe(floats(n_tokens, _HIDDEN, dtype=dtype), routing, experts)


def prompts() -> None:
    """Attention of prompts by kernels of their own, where a target has some."""
    from coterie.backends.cuda.decoder import prompt
    from coterie.backends.cuda.decoder.projected import Projected
    from coterie.models.architecture import Attention, Rope

    whole = Attention(n_heads=6, n_kv_heads=2, head_dim=128, rope=Rope((1.0,) * 64), scale=0.1)
    norm, sinks, table = (floats(*shape, dtype="float32") for shape in ((128,), (6,), (9, 64)))
    for spec, weight, has_sinks in ((whole, norm, False), (replace(whole, window=9, clip=1.0), None, True)):
        projected = Projected(floats(9, 6 * 128), None, None, weight, None, spec, 1e-6, torch.bfloat16)
        if prompt.serves(projected):
            stores, out = (floats(2, 16, 128), floats(2, 16, 128)), floats(9, 6, 128)
            prompt.attend(projected, projected.queries, (table, table), 8, stores, sinks if has_sinks else None, out)


def decoder(target: GPUTarget, shared: int) -> set[str]:
    """The decoder's kernels, by their signatures; their names."""
    import compile_decoder  # not before the target is known: kernels ask once whose instructions they may have

    names = set()
    for kernel, types, constants in compile_decoder.cases():
        names.add(kernel.__name__)
        constants = {**constants, "EARLY": target.arch == 90}
        signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
        places = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=places)
        report(kernel.__name__, constants, shared, partial(triton.compile, source, target, {"enable_fp_fusion": True}))
    return names


def main(name: str) -> None:
    target, capability, shared = TARGETS[name]
    names = compile_only(target, capability, shared)
    simple_verbs()
    products()
    layers(1 if target.backend == "cuda" else 2)
    prompts()
    print(*sorted(names | decoder(target, shared)), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
