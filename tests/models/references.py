"""What transformers and mlx-lm say about a tiny checkpoint, both in f32, on the same stored weights."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from models import gpt_oss_layouts
from models.tiny import transformers_model
from models.tiny_models import Model


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
    named = gpt_oss_layouts.in_memory(weights)
    for name, value in weights.items():
        if re.fullmatch(gpt_oss_layouts.EXPERTS, name):
            continue
        nested = re.sub(r"^language_model\.model\.", "model.language_model.", name)
        nested = nested.replace(".block_sparse_moe.", ".mlp.")
        if nested.endswith("self_attn.embed_q.weight"):
            values = weights[name.replace("embed_q", "unembed_out")]
            joined = np.concatenate((value.swapaxes(1, 2), values), axis=1)
            named[nested.replace("embed_q", "kv_b_proj")] = joined.reshape(-1, joined.shape[-1])
            continue
        if nested.endswith("self_attn.unembed_out.weight"):
            continue
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
        if f"{path}.scales" not in plain or part == "bias":
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
