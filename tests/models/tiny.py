"""Tiny random checkpoints of every family, made by transformers and converted by mlx-lm, and what both say about them.

Every tensor is far from trivial: norms around 1, scales and routers wide enough that no two experts are nearly tied.
Dimensions are multiples of 128 where a group of codes must fit, and the sliding window is a third of the test's length.
"""

import contextlib
import copy
import functools
import io
import json
import math
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"

WINDOW = 16
LENGTH = 48
VOCABULARY = 512
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_QWEN: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
_GEMMA: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": WINDOW,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}


@dataclass(frozen=True)
class Model:
    """One tiny model: its family in transformers, and its config's fields."""

    model_type: str
    fields: dict[str, Any] = field(hash=False)


MODELS: dict[str, Model] = {
    "qwen3_moe": Model("qwen3_moe", _QWEN),
    "qwen3_moe_tied": Model(
        "qwen3_moe",
        {
            **_QWEN,
            "tie_word_embeddings": True,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
            "decoder_sparse_step": 2,
            "num_experts_per_tok": 3,
            "num_key_value_heads": 4,
        },
    ),
    "gemma4": Model("gemma4", _GEMMA),
    "gemma4_text": Model("gemma4_text", {**_GEMMA, "num_experts": 6, "top_k_experts": 3}),
    "gemma4_dense": Model(
        "gemma4_text",
        {**_GEMMA, "enable_moe_block": False, "attention_k_eq_v": False, "final_logit_softcapping": None},
    ),
}

_GEMMA_SMALL: dict[str, Any] = {
    **_GEMMA,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
    "hidden_size_per_layer_input": 64,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
}
MODELS["gemma4_per_layer"] = Model(
    "gemma4", {**_GEMMA_SMALL, "enable_moe_block": False, "attention_k_eq_v": False, "num_key_value_heads": 1}
)
MODELS["gemma4_per_layer_experts"] = Model("gemma4_text", {**_GEMMA_SMALL, "use_double_wide_mlp": False})

FORMATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "4 bits g32": {"quantize": True, "q_bits": 4, "q_group_size": 32},
    "4 bits g64": {"quantize": True, "q_bits": 4, "q_group_size": 64},
    "8 bits g64": {"quantize": True, "q_bits": 8, "q_group_size": 64},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "mixed": {"quantize": True, "quant_predicate": "mixed_4_6", "q_group_size": 64},
}


def token_ids(length: int = LENGTH, seed: int = 0) -> list[int]:
    """Random ids of ordinary tokens."""
    return [int(i) for i in np.random.default_rng(seed).integers(3, 400, length)]


def transformers_config(model: Model) -> Any:
    """The config object of transformers."""
    from transformers import Gemma4Config, Gemma4TextConfig, Qwen3MoeConfig

    fields = copy.deepcopy(model.fields)
    if model.model_type == "qwen3_moe":
        return Qwen3MoeConfig(**fields)
    text = Gemma4TextConfig(**fields)
    if model.model_type == "gemma4_text":
        return text
    return Gemma4Config(text_config=text, vision_config=None, audio_config=None, pad_token_id=0, eos_token_id=1)


def transformers_model(model: Model) -> Any:
    """A model of transformers in f32 with its starting values."""
    from transformers import AutoModelForCausalLM, Gemma4ForConditionalGeneration

    config = transformers_config(model)
    config.dtype = "float32"
    if model.model_type == "gemma4":
        made = Gemma4ForConditionalGeneration(config)
    else:
        made = AutoModelForCausalLM.from_config(config)
    made.set_attn_implementation("eager")
    return made.eval()


def randomise(made: Any, seed: int) -> None:
    """Fill every parameter and every stored buffer with values that no shortcut gets right by luck."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    stored = [*made.named_parameters(), *((n, b) for n, b in made.named_buffers() if n.endswith("layer_scalar"))]
    with torch.no_grad():
        for name, tensor in stored:
            mean, spread = _distribution(name, tensor.shape)
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + mean)
    made.tie_weights()


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if "norm" in name or name.endswith(("per_expert_scale", "router.scale", "layer_scalar")):
        return 1.0, 0.2
    if name.endswith(("mlp.gate.weight", "router.proj.weight")):
        return 0.0, 0.5
    if "embed_tokens" in name or "lm_head" in name:
        return 0.0, 1.0 if "embed_tokens" in name else 0.3
    return 0.0, 1.2 / math.sqrt(shape[-1])


def save_source(model: Model, folder: Path, *, dtype: str = "float32", seed: int = 0) -> None:
    """An unconverted checkpoint as transformers writes it, with a config that mlx-lm reads right."""
    import torch

    made = transformers_model(model)
    randomise(made, seed)
    with contextlib.redirect_stderr(io.StringIO()):
        made.to(getattr(torch, dtype)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(published_dialect(config)))
    write_tokenizer(folder)


def published_dialect(config: dict[str, Any]) -> dict[str, Any]:
    """A config of transformers 5 with the keys that published checkpoints have and that mlx-lm reads."""
    old = copy.deepcopy(config)
    if "text_config" in old:
        old["text_config"] = published_dialect(old["text_config"])
        # mlx-lm takes the size of the vocabulary from the top level.
        old["vocab_size"] = old["text_config"]["vocab_size"]
    if old["model_type"] == "qwen3_moe":
        old["rope_theta"] = old.pop("rope_parameters")["rope_theta"]
        old["rope_scaling"] = None
        old["num_experts"] = old.pop("num_local_experts")
    per_layer = old.pop("per_layer_config", None)
    if per_layer is not None:
        own = next(iter(per_layer.values()))
        old["global_head_dim"] = own["head_dim"]
        old["num_global_key_value_heads"] = own.get("num_key_value_heads")
    return old


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of 512 tokens: three special ones, the 256 bytes, and merges learnt from a few words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>", "<bos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["def read_lines(path):\n    return open(path).read()\n", "déjà vu; 数学は楽しい"]
    made.train_from_iterator(text, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    ).save_pretrained(folder)


def convert(source: Path, target: Path, options: dict[str, Any]) -> None:
    """mlx-lm's own conversion."""
    import mlx.core as mx
    from mlx_lm.convert import convert as mlx_convert

    mx.set_default_device(mx.cpu)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        mlx_convert(str(source), str(target), **options)


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="coterie-tiny-")


def checkpoint(name: str, format_name: str, dtype: str = "float32") -> Path:
    """The folder of the model `name` converted to the format; made once in a session."""
    return _converted(name, format_name, dtype)


def source(name: str) -> Path:
    """The folder of the model `name` as transformers writes it, in f32."""
    return _source(name, "float32")


@functools.cache
def _converted(name: str, format_name: str, dtype: str) -> Path:
    original = _source(name, dtype)
    target = original.with_name(f"{original.name}-{format_name.replace(' ', '-')}")
    convert(original, target, FORMATS[format_name])
    return target


@functools.cache
def _source(name: str, dtype: str) -> Path:
    folder = Path(_root().name) / f"{name}-{dtype}"
    save_source(MODELS[name], folder, dtype=dtype)
    return folder


# What the two references say --------------------------------------------------------------------------


def mlx_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """mlx-lm's logits [T, V], computed in f32 on the CPU."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    made, _ = load_model(folder)
    made.set_dtype(mx.float32)
    return np.array(made(mx.array([ids])).astype(mx.float32))[0]


def transformers_logits(model: Model, folder: Path, ids: list[int]) -> np.ndarray:
    """The logits [T, V] of transformers, in f32, on the weights in `folder` dequantised by the decoder below."""
    import torch

    made = transformers_model(model)
    state = {name: torch.from_numpy(value) for name, value in transformers_names(dequantised(folder)).items()}
    missing, unexpected = made.load_state_dict(state, strict=False)
    made.tie_weights()
    assert not unexpected
    assert [name for name in missing if not re.search(r"inv_freq|embed_scale|lm_head", name)] == []
    with torch.no_grad():
        return made(torch.tensor([ids])).logits[0].float().numpy()


def transformers_names(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """MLX's names to those of transformers in memory, where gate and up rows of the experts are one matrix."""
    named = {}
    for name, value in weights.items():
        nested = re.sub(r"^language_model\.model\.", "model.language_model.", name)
        experts = re.fullmatch(r"(.*)\.(?:mlp\.switch_mlp|experts\.switch_glu)\.(gate|up|down)_proj\.weight", nested)
        if experts is None:
            named[nested] = value
            continue
        stem = experts[1] + (".mlp.experts" if ".switch_mlp." in nested else ".experts")
        if experts[2] == "down":
            named[f"{stem}.down_proj"] = value
        elif experts[2] == "gate":
            up = weights[name.replace("gate_proj", "up_proj")]
            named[f"{stem}.gate_up_proj"] = np.concatenate((value, up), axis=1)
    return named


def dequantised(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint in MLX's format as f32, by a decoder that shares nothing with the one under test."""
    import torch
    from safetensors import safe_open

    stored: dict[str, Any] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            stored.update({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    plain = {n: (t if t.dtype in (torch.uint32, torch.uint8) else t.float()).numpy() for n, t in stored.items()}
    declared = json.loads((folder / "config.json").read_text()).get("quantization", {})
    out = {}
    for name, value in plain.items():
        path, _, part = name.rpartition(".")
        if f"{path}.scales" not in plain:
            out[name] = value
        elif part == "weight":
            entry = declared.get(path)
            rule = entry if isinstance(entry, dict) else declared
            out[name] = _dequantise(value, plain[f"{path}.scales"], plain.get(f"{path}.biases"), rule)
    return out


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _dequantise(words: np.ndarray, scales: np.ndarray, biases: np.ndarray | None, rule: dict[str, Any]) -> np.ndarray:
    bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    width = rule["bits"]
    codes = bits.reshape(*words.shape[:-1], -1, width) @ (1 << np.arange(width))
    grouped = codes.reshape(*scales.shape, -1)
    if biases is not None:
        values = grouped * scales[..., None] + biases[..., None]
    else:
        assert rule["mode"] == "mxfp4"
        values = _E2M1[grouped] * np.exp2(scales.astype(np.float32) - 127)[..., None]
    return values.reshape(codes.shape).astype(np.float32)
