"""Compiles every kernel for a GPU that need not be here, which finds what the interpreter lets pass.

Run as a program, without TRITON_INTERPRET: it prints a line for each kernel that does not compile.
"""

import sys
from typing import Any

import compile_decoder
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from coterie.backends.cuda.kernels import activation, combine, dequantize, group, route

TARGETS = {
    "hopper": GPUTarget("cuda", 90, 32),
    "ampere": GPUTarget("cuda", 80, 32),
    "cdna3": GPUTarget("hip", "gfx942", 64),
}

_SORT = {"ids": "*i32", "order": "*i32", "offsets": "*i32", "inverse": "*i32", "n_rows": "i32", "n_experts": "i32"}
_COUNTS = {"counts": "*i32", "rows_each": "i32"}
_ROUTE = {"logits": "*bf16", "ids": "*i32", "weights": "*fp32", "n_experts": "i32", "scaling_factor": "fp32"}
_SOFTMAX = {
    "selection_bias": None, "scale": None, "TOP_K": 8, "SLOTS": 8, "SIGMOID": False, "RENORMALIZE": True,
    "BY_LOGITS": True, "HAS_BIAS": False, "HAS_SCALE": False, "N_GROUPS": 1, "TOP_GROUPS": 1, "TOP2": False,
    "GROUPS": 1, "MEMBERS": 128,
}  # fmt: skip
_GROUPED = {
    "TOP_K": 6, "SLOTS": 8, "SIGMOID": True, "RENORMALIZE": True, "BY_LOGITS": False, "HAS_BIAS": True,
    "HAS_SCALE": True, "N_GROUPS": 8, "TOP_GROUPS": 4, "TOP2": True, "GROUPS": 8, "MEMBERS": 512,
}  # fmt: skip


def cases() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """(kernel, the types of its arguments, its constants)."""
    glu = {"gate": "*bf16", "up": "*bf16", "out": "*bf16", "n_columns": "i64", "row_stride": "i32", "n_blocks": "i32"}
    total = {"outputs": "*bf16", "weights": "*fp32", "totals": "*fp32", "top_k": "i32", "n_columns": "i32"}
    added = {"accumulator": "*fp32", "outputs": "*bf16", "number": "fp32", "weight": "*fp32", "n_values": "i64"}
    topk = {"probs": "*fp32", "ids": "*i32", "scale": "*fp32", "weights": "*fp32", "n_experts": "i32", "top_k": "i32"}
    count = {name: kind for name, kind in _SORT.items() if name not in ("order", "offsets", "inverse")}
    vectors = {"selection_bias": "*fp32", "scale": "*bf16"}
    names = ("silu", "gelu_tanh", "gelu", "relu", "swiglu_clamped")
    found = [(activation.glu_kernel, glu, {"ACTIVATION": name, "BLOCK": 1024}) for name in names]
    found += [
        (combine.weighted_sum_kernel, total, {"SLOTS": 8, "BLOCK": 256}),
        (combine.accumulate_kernel, added, {"HAS_WEIGHT": True, "BLOCK": 1024}),
        (route.route_kernel, _ROUTE, _SOFTMAX),
        (route.route_kernel, _ROUTE | vectors, _GROUPED),
        (route.gather_topk_weights_kernel, topk, {"HAS_SCALE": True, "SLOTS": 8}),
        (group.group_few_kernel, _SORT, {"ROWS": 4096}),
        (group.count_rows_kernel, count | _COUNTS, {"ROWS": 128}),
        (group.place_rows_kernel, _SORT | _COUNTS | {"ends": "*i32"}, {"ROWS": 128}),
    ]
    for mode, bits, size, scale in (
        ("affine", 4, 64, "*bf16"),
        ("affine", 3, 32, "*fp32"),
        ("nvfp4", 4, 16, "*u8"),
        ("mxfp8", 8, 32, "*u8"),
    ):
        types = {"codes": "*i32", "scales": scale, "out": "*bf16", "n_values": "i64"}
        constants = {"MODE": mode, "BITS": bits, "GROUP": size, "BLOCK": 1024}
        biases = {"biases": scale} if mode == "affine" else {}
        found.append(
            (dequantize.dequantize_kernel, types | biases, constants if biases else {**constants, "biases": None})
        )
    return found


def main(names: list[str]) -> None:
    for name in names:
        for kernel, types, constants in [*cases(), *compile_decoder.cases()]:
            constants = {**constants, "EARLY": name == "hopper"}
            kinds = {argument: kind for argument, kind in types.items() if argument not in constants}
            signature = {argument: kinds.get(argument, "constexpr") for argument in kernel.arg_names}
            places = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
            try:
                source = ASTSource(fn=kernel, signature=signature, constexprs=places)
                triton.compile(source, target=TARGETS[name], options={"enable_fp_fusion": True})
            except Exception as failure:
                print(name, kernel.__name__, constants, repr(failure).replace("\n", " ")[:500])


if __name__ == "__main__":
    main(sys.argv[1:])
