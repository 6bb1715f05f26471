"""A small unquantised checkpoint to run commands on, made of nothing but the architecture's own list of weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from coterie.checkpoint import write_safetensors
from coterie.models.families import family_of
from coterie.models.weights import slots

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "mlp_only_layers": [1],
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 0,
}


def byte_tokenizer() -> Tokenizer:
    """One token a byte, without merges."""
    alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_source(folder: Path) -> Path:
    """Write config.json, a tokenizer and random weights of `CONFIG` under MLX's names; returns the folder."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    tensors = {
        slot.tensor: rng.standard_normal(slot.shape, np.float32) * np.float32(slot.shape[-1] ** -0.5)
        for slot in slots(family_of(CONFIG).architecture(CONFIG))
    }
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(
        16, np.float32
    )  # old files have it; nothing uses it
    write_safetensors(folder / "model.safetensors", tensors)
    return folder
