"""A decoder written as a GGUF file with the same weights, for llama.cpp: bits are moved, no number is rounded.

    affine 4 bits, bias = -8 scales      q4_0: f16 scale * (code - 8), 32 codes a block
    affine 8 bits, bias = -128 scales    q8_0: f16 scale * signed code, 32 codes a block
    mxfp4                                mxfp4

Groups of 64 become two blocks with one scale. A block of 4-bit codes holds code i and code i + 16 in byte i, where
MLX's words hold codes 2i and 2i + 1. The router is f32, as in every GGUF file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coterie.arrays import bfloat16
from coterie.bench.entrants import RefusedError
from coterie.bench.subject import Subject
from coterie.formats import Packed, codec
from coterie.models.architecture import Architecture, Attention, Layer, Mlp, Moe, Rope
from coterie.models.weights import layer_prefix

_BLOCK = 32
_NAMES = {"qwen3_moe": "qwen3moe", "gemma4": "gemma4"}
"""Families -> the names of their architectures in GGUF files."""
_STILL = 1e30
"""llama.cpp divides frequencies by factors: such a pair does not turn."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor to write: its name, logical shape, GGUF type, and what makes its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Callable[[], np.ndarray]


def write(path: Path, architecture: Architecture, weights: Mapping[str, Any]) -> None:
    """Write the file; `RefusedError` for a family or weights that the format does not have."""
    import gguf

    if architecture.family not in _NAMES:
        raise RefusedError(f"no GGUF file is written for {architecture.family}; expected {' or '.join(_NAMES)}")
    if architecture.family == "gemma4" and all(layer.attention.window is None for layer in architecture.layers):
        raise RefusedError("llama.cpp has no cache for a Gemma 4 without sliding layers; take two layers or more")
    tensors = list(_tensors(architecture, weights))
    writer = gguf.GGUFWriter(str(path), _NAMES[architecture.family], use_temp_file=False)
    _write_facts(writer, architecture)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = int(np.prod(tensor.shape)) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), n_bytes, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.make())
    writer.close()


def bytes_per_token(subject: Subject, n_before: int, n_steps: int) -> float:
    """What `Subject.bytes_per_token` is for llama.cpp: the router's weights are f32, keys and values f16."""
    own = subject.bytes_per_token(n_before, n_steps)
    weights = subject.description.nbytes_per_token
    architecture = subject.decoder.architecture
    routers = {
        layer_prefix(architecture, index) + layer.moe.router.module
        for index, layer in enumerate(architecture.layers)
        if layer.moe is not None
    }
    wider = sum(4 * w.n_parameters - w.nbytes for w in subject.description.weights if w.path in routers)
    return weights + wider + (own - weights) / 2


def _tensors(architecture: Architecture, weights: Mapping[str, Any]) -> Iterator[_Tensor]:
    prefix = architecture.prefix
    yield _matrix("token_embd.weight", weights[prefix + architecture.embedding])
    yield _plain("output_norm.weight", weights[prefix + architecture.final_norm])
    if architecture.head is not None:
        yield _matrix("output.weight", weights[architecture.head])
    ropes = {layer.attention.rope for layer in architecture.layers if layer.attention.window is None}
    if architecture.family == "gemma4" and ropes:
        yield _plain("rope_freqs.weight", _rope_factors(ropes.pop()))
    for index, layer in enumerate(architecture.layers):
        inside = layer_prefix(architecture, index)
        for name, parts in _layer_names(layer, fused=architecture.family == "gemma4"):
            found = [weights[inside + part] for part in parts]
            full = f"blk.{index}.{name}"
            if name == "ffn_gate_inp.weight":
                yield _plain(full, found[0])
            elif isinstance(found[0], Packed) or found[0].ndim > 1:
                yield _matrix(full, *found)
            else:
                yield _plain(full, found[0])


def _layer_names(layer: Layer, *, fused: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name in GGUF files, paths in the layer): two paths where gate and up rows of an expert stand in one tensor."""
    for name, path in _single_names(layer):
        if path is not None:
            yield name, (path,)
    if layer.moe is not None:
        moe = layer.moe
        if fused:
            yield "ffn_gate_up_exps.weight", (moe.gate, moe.up)
        else:
            yield "ffn_gate_exps.weight", (moe.gate,)
            yield "ffn_up_exps.weight", (moe.up,)
        yield "ffn_down_exps.weight", (moe.down,)


def _single_names(layer: Layer) -> Iterator[tuple[str, str | None]]:
    yield from _attention_names(_grouped(layer))
    beside_mlp = layer.mlp is not None
    if layer.mlp is not None:
        yield from _mlp_names(layer.mlp)
    if layer.moe is not None:
        yield from _router_names(layer.moe, beside_mlp=beside_mlp)
    yield "post_ffw_norm.weight", layer.after_branches
    yield "layer_output_scale.weight", layer.scalar


def _grouped(layer: Layer) -> Attention:
    assert isinstance(layer.attention, Attention), "none of the families in _NAMES has another kind"
    return layer.attention


def _attention_names(attention: Attention) -> Iterator[tuple[str, str | None]]:
    modules = attention.modules
    yield "attn_norm.weight", modules.before
    yield "attn_q.weight", modules.query
    yield "attn_k.weight", modules.key
    yield "attn_v.weight", modules.value
    yield "attn_output.weight", modules.output
    yield "attn_q_norm.weight", modules.query_norm
    yield "attn_k_norm.weight", modules.key_norm
    yield "post_attention_norm.weight", modules.after


def _mlp_names(mlp: Mlp) -> Iterator[tuple[str, str | None]]:
    yield "ffn_norm.weight", mlp.before
    yield "ffn_gate.weight", mlp.gate
    yield "ffn_up.weight", mlp.up
    yield "ffn_down.weight", mlp.down
    yield "post_ffw_norm_1.weight", mlp.after


def _router_names(moe: Moe, *, beside_mlp: bool) -> Iterator[tuple[str, str | None]]:
    yield ("pre_ffw_norm_2.weight" if beside_mlp else "ffn_norm.weight"), moe.before
    yield "ffn_gate_inp.weight", moe.router.module
    yield "ffn_gate_inp.scale", moe.router.norm
    yield "ffn_down_exps.scale", moe.router.per_expert_scale
    yield "post_ffw_norm_2.weight", moe.after


# Facts ---------------------------------------------------------------------------------------------------------------


def _write_facts(writer: Any, architecture: Architecture) -> None:
    """The keys that llama.cpp reads; a model without a tokenizer is fed with ids."""
    layers = architecture.layers
    attentions = [_grouped(layer) for layer in layers]
    full = next((attention for attention in attentions if attention.window is None), attentions[0])
    writer.add_block_count(len(layers))
    writer.add_context_length(architecture.context_length)
    writer.add_embedding_length(architecture.hidden_size)
    writer.add_vocab_size(architecture.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_layer_norm_rms_eps(architecture.norm_eps)
    writer.add_head_count(full.n_heads)
    writer.add_head_count_kv([attention.n_kv_heads for attention in attentions])
    writer.add_key_length(full.head_dim)
    writer.add_value_length(full.head_dim)
    writer.add_rope_dimension_count(full.head_dim)
    writer.add_rope_freq_base(_rope_base(full))
    dense = [layer.mlp.width for layer in layers if layer.mlp is not None]
    routed = [layer.moe for layer in layers if layer.moe is not None]
    writer.add_feed_forward_length(dense[0] if dense else routed[0].width)
    if routed:
        writer.add_expert_count(routed[0].n_experts)
        writer.add_expert_used_count(routed[0].router.top_k)
        writer.add_expert_feed_forward_length(routed[0].width)
    if architecture.family == "gemma4":
        _write_gemma4(writer, architecture)


def _write_gemma4(writer: Any, architecture: Architecture) -> None:
    attentions = [_grouped(layer) for layer in architecture.layers]
    sliding = next((attention for attention in attentions if attention.window is not None), attentions[0])
    writer.add_sliding_window(sliding.window or architecture.context_length)
    writer.add_sliding_window_pattern([attention.window is not None for attention in attentions])
    writer.add_key_length_swa(sliding.head_dim)
    writer.add_value_length_swa(sliding.head_dim)
    writer.add_rope_dimension_count_swa(sliding.head_dim)
    writer.add_rope_freq_base_swa(_rope_base(sliding))
    writer.add_embedding_length_per_layer_input(0)
    writer.add_shared_kv_layers(0)
    if architecture.logit_cap is not None:
        writer.add_final_logit_softcapping(architecture.logit_cap)


def _rope_base(attention: Attention) -> float:
    """The base that the frequencies are powers of, from the last pair that turns; bases have few digits."""
    turning = [frequency for frequency in attention.rope.frequencies if frequency > 0]
    last = len(turning) - 1
    return float(f"{turning[last] ** (-attention.head_dim / (2 * last)):.5g}") if last else 1.0


def _rope_factors(rope: Rope) -> np.ndarray:
    return np.where(np.array(rope.frequencies) > 0, 1.0, _STILL).astype(np.float32)


# Weights -------------------------------------------------------------------------------------------------------------


def _plain(name: str, value: Any) -> _Tensor:
    def make() -> np.ndarray:
        return np.ascontiguousarray(decoded(value), np.float32)

    return _Tensor(name, tuple(value.shape), "F32", make)


def decoded(value: Any) -> np.ndarray:
    """A weight's numbers as f32."""
    if isinstance(value, Packed):
        return codec.dequantize_f64(value.codes, value.scales, value.biases, value.format).astype(np.float32)
    return np.asarray(value).astype(np.float32)


def _matrix(name: str, *parts: Any) -> _Tensor:
    """One matrix or stack; two of them stand in one tensor, the rows of the second behind those of the first."""
    rows = sum(part.shape[-2] for part in parts)
    shape = (*parts[0].shape[:-2], rows, parts[0].shape[-1])
    kinds = {_kind_of(name, part) for part in parts}
    if len(kinds) > 1:
        raise RefusedError(f"{name} would hold {' and '.join(sorted(kinds))}")

    def make() -> np.ndarray:
        made = [_bytes_of(part) for part in parts]
        return made[0] if len(made) == 1 else np.concatenate(made, -2)

    return _Tensor(name, shape, kinds.pop(), make)


def _kind_of(name: str, weight: Any) -> str:
    """The GGUF type that holds the weight exactly."""
    if not isinstance(weight, Packed):
        return "BF16" if weight.dtype == bfloat16 else "F32"
    fmt = weight.format
    kind = {("affine", 4): "Q4_0", ("affine", 8): "Q8_0", ("mxfp4", 4): "MXFP4"}.get((fmt.mode, fmt.bits))
    if kind is None or weight.shape[-1] % _BLOCK:
        raise RefusedError(f"GGUF has no type for {name} in {fmt}")
    if weight.biases is not None:
        scales = weight.scales.astype(np.float32)
        whole = np.array_equal(weight.biases.astype(np.float32), -scales * (1 << (fmt.bits - 1)))
        if not whole or not np.array_equal(scales.astype(np.float16).astype(np.float32), scales):
            raise RefusedError(f"the scales and biases of {name} are not those of {kind.lower()}")
    return kind


def _bytes_of(weight: Any) -> np.ndarray:
    """uint8 [..., N, bytes of a row] of a packed weight; a plain one as it is."""
    if not isinstance(weight, Packed):
        return np.ascontiguousarray(weight)
    fmt = weight.format
    n_blocks = weight.shape[-1] // _BLOCK
    codes = np.ascontiguousarray(weight.codes).view(np.uint8).reshape(*weight.shape[:-1], n_blocks, -1)
    if fmt.mode == "affine":
        halves = np.repeat(weight.scales.astype(np.float32).astype(np.float16), fmt.group_size // _BLOCK, -1)
        scales = halves.view(np.uint8).reshape(*codes.shape[:-1], 2)
    else:
        scales = weight.scales[..., None]
    width = scales.shape[-1]
    blocks = np.empty((*codes.shape[:-1], width + codes.shape[-1]), np.uint8)
    blocks[..., :width] = scales
    if fmt.bits == 8:
        np.bitwise_xor(codes, 0x80, out=blocks[..., width:])
    else:
        first, second = codes[..., :8], codes[..., 8:]
        blocks[..., width::2] = (first & 15) | (second << 4)
        blocks[..., width + 1 :: 2] = (first >> 4) | (second & 0xF0)
    return blocks.reshape(*weight.shape[:-1], -1)
