"""The kernels of a whole decoder, with the types and constants that well-known models have."""

from typing import Any

import triton.language as tl

from coterie.backends.cuda.kernels import attend, attend_step, by_head, embed, heads, norms, rotation, sample

_HEADS = {
    "q": "*fp32", "k": "*fp32", "v": "*fp32", "q_weight": "*fp32", "k_weight": "*fp32", "cos": "*fp32", "sin": "*fp32",
    "positions": "*i64", "sequences": "*i64", "stores": "*i64", "eps": "fp32", "limit": "fp32",
    **dict.fromkeys(("q_token", "k_token", "v_token", "q_row", "k_row", "v_row"), "i32"),
}  # fmt: skip
_PLACE = {
    "N_HEADS": 32, "N_KV_HEADS": 4, "D": 128, "N_PAIRS": 64, "INTERLEAVED": False, "Q_NORM": True, "K_NORM": True,
    "V_NORM": True, "HAS_LIMIT": True, "DTYPE": tl.bfloat16, "HEADS": 8, "BLOCK_D": 128,
}  # fmt: skip
_SHARES = {
    **{name: value for name, value in _PLACE.items() if name not in ("N_KV_HEADS", "HEADS")},
    "GROUP": 8, "HEADS": 16, "D_TURNED": 0, "HAS_NEW": True, "HAS_WINDOW": True, "LATENT": False, "N_SPLITS": 64,
    "BLOCK_N": 64, "BLOCK_TURNED": 1, "q_turned": None,
}  # fmt: skip
_OF_LATENTS = {
    **{name: value for name, value in _SHARES.items() if name != "q_turned"},
    **dict.fromkeys(("k", "v", "q_weight", "k_weight", "cos", "sin")), "GROUP": 16, "D": 512, "BLOCK_D": 512,
    "D_TURNED": 64, "BLOCK_TURNED": 64, "N_PAIRS": 0, "Q_NORM": False, "K_NORM": False, "V_NORM": False,
    "HAS_LIMIT": False, "HAS_NEW": False, "HAS_WINDOW": False, "LATENT": True, "BLOCK_N": 32,
}  # fmt: skip
_TOKENS = {
    "q_turned": None, "N_HEADS": 32, "GROUP": 8, "HAS_WINDOW": True, "WRAPS": True, "HAS_SINKS": True, "LATENT": False,
    "D": 128, "D_TURNED": 0, "DTYPE": tl.bfloat16, "BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_D": 128, "BLOCK_TURNED": 1,
}  # fmt: skip
_SAMPLE = {
    "logits": "*fp32", "tops": "*fp32", "places": "*i32", "bad": "*i32", "settings": "*fp64", "k_borders": "*i64",
    "p_borders": "*i64", "sums": "*i64", "next_sums": "*i64", "states": "*i64", "next_states": "*i64",
    "other_borders": "*i64", "uniforms": "*i64", "found": "*i64", "ids": "*i64", "positions": "*i64",
    "n_logits": "i32", "n_blocks": "i32", "digits_left": "i32",
}  # fmt: skip
_SIZES = {"UNIT": 44, "ID_BITS": 18, "BLOCK": 1024, "BLOCKS": 256}
_DIGIT = {"IS_FIRST": False, "IS_SECOND": True, **_SIZES}


def cases() -> list[tuple[Any, dict[str, Any], dict[str, Any]]]:
    """(kernel, the types of its arguments, its constants)."""
    shares = {**_HEADS, "q_turned": "*fp32", "mixed_parts": "*fp32", "state_parts": "*fp32", "window": "i32"}
    shares["scale"] = "fp32"
    tokens = {"q": "*bf16", "stores": "*i64", "sinks": "*fp32", "out": "*fp32", "scale": "fp32"}
    tokens |= dict.fromkeys(("sequence", "n_tokens", "start", "window"), "i32")
    added: dict[str, Any] = dict.fromkeys(("h", "after", "scalar", "out"), "*fp32")
    added |= dict.fromkeys(("branch_norms", "weights", "befores", "normed"), ("*fp32", "*fp32"))
    added["sums"] = ("*fp32",) * 3
    added |= {"branches": ("*fp32", "*bf16"), "ids": ("*fp32", "*i32"), "values": ("*bf16", "*bf16", "*fp16")}
    added |= {"n_rows": "i32", "n_experts": "i32", "eps": "fp32"}
    every = {
        "SIZE": 2816,
        "TOP_K": (0, 8),
        "NORMS_OF": (True, True),
        "HAS_AFTER": True,
        "HAS_SCALAR": True,
        "WIDE": (True, False),
        "ARRANGED": (
            (0, 64, 4, 1, True, False, False),
            (1, 64, 2, 2, True, False, False),
            (1, 16, 4, 1, False, True, True),
        ),
        "BLOCK": 4096,
        "SOON": True,
    }
    normed = {"x": "*fp32", "weight": "*fp32", "out": "*fp32", "size": "i32", "x_stride": "i32", "eps": "fp32"}
    turned = {"x": "*fp32", "out": "*fp32", "cos": "*fp32", "sin": "*fp32"}
    turned |= dict.fromkeys(("n_heads", "x_token", "x_head"), "i32")
    shape = {name: _PLACE[name] for name in ("D", "N_PAIRS", "INTERLEAVED", "HEADS", "BLOCK_D")}
    return [
        (norms.rms_norm_kernel, normed, {"HAS_WEIGHT": True, "BLOCK": 2048}),
        (norms.add_norms_kernel, added, every),
        (heads.turn_heads_kernel, turned, shape),
        (heads.place_heads_kernel, {**_HEADS, "out": "*bf16"}, _PLACE),
        (attend_step.attend_shares_kernel, shares, _SHARES),
        (attend_step.attend_shares_kernel, shares, _OF_LATENTS),
        (
            attend_step.combine_shares_kernel,
            {"mixed_parts": "*fp32", "state_parts": "*fp32", "sinks": "*fp32", "positions": "*i64", "out": "*fp32",
             "values": ("*bf16",), "sums": ("*fp32",), "n_rows": "i32", "window": "i32"},
            {"N_HEADS": 32, "ARRANGED": ((64, 4, 1, True, False, False),), "HAS_SINKS": True, "HAS_WINDOW": True,
             "D": 128, "N_SPLITS": 64, "SPLITS": 64, "CHUNK": 64, "BLOCK_N": 64, "BLOCK_D": 128, "SOON": True},
        ),
        (attend.attend_tokens_kernel, tokens, _TOKENS),
        (
            by_head.multiply_by_head_kernel,
            {"x": "*fp32", "weights": "*fp32", "out": "*fp32", "n_rows": "i32", "x_row": "i32", "x_head": "i32"},
            {"N_HEADS": 16, "N": 512, "K": 128, "BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 64},
        ),
        (
            by_head.keep_latents_kernel,
            {"latents": "*fp32", "keys": "*fp32", "positions": "*i64", "sequences": "*i64", "stores": "*i64"},
            {"RANK": 512, "D": 64, "DTYPE": tl.bfloat16, "BLOCK_RANK": 512, "BLOCK_D": 64},
        ),
        (
            rotation.rotation_kernel,
            {"positions": "*i64", "frequencies": "*fp32", "cos": "*fp32", "sin": "*fp32", "amplitude": "fp32"},
            {"N_PAIRS": 64, "BLOCK": 64},
        ),
        (
            embed.embed_kernel,
            {"codes": "*i32", "scales": "*bf16", "biases": "*bf16", "ids": "*i64", "out": "*fp32", "size": "i32",
             "factor": "fp32"},
            {"MODE": "affine", "BITS": 4, "GROUP": 64, "BLOCK": 1024},
        ),
        (sample.find_highest_kernel, _SAMPLE, {"BLOCK": 1024}),
        (sample.next_digit_kernel, _SAMPLE, {"IS_LAST": False, "BY_SHARE": True, "AMONG_OTHERS": True, **_DIGIT}),
        (sample.next_digit_kernel, _SAMPLE, {"IS_LAST": True, "BY_SHARE": False, "AMONG_OTHERS": False, **_DIGIT}),
        (sample.sum_shares_kernel, _SAMPLE, {"HAS_K": True, "HAS_P": True, **_SIZES}),
        (sample.take_tokens_kernel, _SAMPLE, {"DRAWS": True, "HAS_K": True, "HAS_P": True, **_SIZES}),
    ]  # fmt: skip
