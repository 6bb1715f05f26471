"""gpt-oss in layouts that transformers does not write: experts in mxfp4 blocks, and unquantised as mlx-lm reads them.

transformers saves experts transposed, [E, in, out]; both others have [E, out, in], with gate and up rows in turn.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

EXPERTS = r"(.*\.mlp\.experts)\.(gate|up|down)_proj\.(weight|bias)"
"""MLX's names of gpt-oss's experts."""

SKIPPED = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def to_blocks(folder: Path) -> None:
    """Rewrite a checkpoint of transformers as it would have been published: experts in bytes of two mxfp4 codes."""
    import mlx.core as mx
    import torch

    def packed(name: str, rows: Any) -> dict[str, Any]:
        codes, scales = mx.quantize(mx.array(rows.float().numpy()), group_size=32, bits=4, mode="mxfp4")
        blocks = np.array(codes).view(np.uint8).reshape(*rows.shape[:2], rows.shape[2] // 32, 16)
        return {f"{name}_blocks": torch.from_numpy(blocks), f"{name}_scales": torch.from_numpy(np.array(scales))}

    _rewrite(folder, packed)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": SKIPPED}
    (folder / "config.json").write_text(json.dumps(config))


def to_plain(folder: Path) -> None:
    """Rewrite a checkpoint of transformers as mlx-lm reads unquantised experts."""
    _rewrite(folder, lambda name, rows: {f"{name}.weight": rows})


def _rewrite(folder: Path, experts: Any) -> None:
    from safetensors.torch import load_file, save_file

    out: dict[str, Any] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            out.update(experts(name, value.transpose(1, 2).contiguous()))
        else:
            out[name] = value
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})


def in_memory(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """MLX's experts as transformers has them in memory."""
    named = {}
    for name, value in weights.items():
        match = re.fullmatch(EXPERTS, name)
        if match is None or match[2] == "up":
            continue
        joined, path = value, f"{match[1]}.down_proj"
        if match[2] == "gate":
            up = weights[name.replace("gate_proj", "up_proj")]
            joined = np.stack((value, up), axis=2).reshape(len(value), -1, *value.shape[2:])
            path = f"{match[1]}.gate_up_proj"
        named[path if match[3] == "weight" else f"{path}_bias"] = joined.swapaxes(1, 2) if joined.ndim == 3 else joined
    return {name: np.ascontiguousarray(value) for name, value in named.items()}
