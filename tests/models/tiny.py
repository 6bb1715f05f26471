"""Tiny random checkpoints of every family, made by transformers and converted by mlx-lm.

Every tensor is far from trivial: norms around 1, scales and routers wide enough that no two experts are nearly tied.
`references.py` has what transformers and mlx-lm say about them.
"""

import contextlib
import functools
import io
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from models import gpt_oss_layouts
from models.tiny_models import (
    LENGTH,
    MODELS,
    VOCABULARY,
    WINDOW,
    Model,
    published_dialect,
    transformers_config,
)

__all__ = ["LENGTH", "MODELS", "VOCABULARY", "WINDOW", "Model", "published_dialect", "transformers_config"]

os.environ["HF_HUB_OFFLINE"] = "1"

FORMATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "4 bits g32": {"quantize": True, "q_bits": 4, "q_group_size": 32},
    "4 bits g64": {"quantize": True, "q_bits": 4, "q_group_size": 64},
    "8 bits g64": {"quantize": True, "q_bits": 8, "q_group_size": 64},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "mixed": {"quantize": True, "quant_predicate": "mixed_4_6", "q_group_size": 64},
}


def mlx_differs(name: str, format_name: str) -> str:
    """Why mlx-lm's logits of a model in a format are not those of the original implementation; empty where they are."""
    model = MODELS[name]
    if format_name == "mxfp4" and model.model_type.startswith("gemma4"):
        return "it scales embeddings of this format in bfloat16"
    return model.mlx_differs


def token_ids(length: int = LENGTH, seed: int = 0) -> list[int]:
    """Random ids of ordinary tokens."""
    return [int(i) for i in np.random.default_rng(seed).integers(3, 400, length)]


def transformers_model(model: Model) -> Any:
    """A model of transformers in f32 with its starting values."""
    import transformers

    nested = {
        "gemma4": transformers.Gemma4ForConditionalGeneration,
        "gemma4_unified": transformers.Gemma4UnifiedForConditionalGeneration,
    }
    config = transformers_config(model)
    config.dtype = "float32"
    make = nested.get(model.model_type, transformers.AutoModelForCausalLM.from_config)
    made = make(config)
    made.set_attn_implementation("eager")
    return made.eval()


_STORED_BUFFERS = ("layer_scalar", "e_score_correction_bias")


def randomise(made: Any, seed: int) -> None:
    """Fill every parameter and every stored buffer with values that no shortcut gets right by luck."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    stored = [*made.named_parameters(), *((n, b) for n, b in made.named_buffers() if n.endswith(_STORED_BUFFERS))]
    with torch.no_grad():
        for name, tensor in stored:
            mean, spread = _distribution(name, tensor.shape)
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + mean)
    made.tie_weights()


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if "norm" in name or name.endswith(("per_expert_scale", "router.scale", "layer_scalar")):
        return 1.0, 0.2
    if name.endswith("e_score_correction_bias"):
        # Mostly negative, so that the experts outside of the best groups are told from a score of 0.
        return -0.8, 0.2
    if name.endswith(("bias", "_proj_bias")):
        return 0.0, 0.3
    if name.endswith("sinks"):
        return 0.0, 1.0
    if name.endswith(("mlp.gate.weight", "router.proj.weight", "router.weight")):
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
    if model.in_blocks:
        gpt_oss_layouts.to_blocks(folder)
    write_tokenizer(folder)


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
    original = _readable(_source(name, dtype), MODELS[name])
    target = original.with_name(f"{original.name}-{format_name.replace(' ', '-')}")
    convert(original, target, FORMATS[format_name])
    return target


@functools.cache
def _readable(source: Path, model: Model) -> Path:
    """A source as mlx-lm can read it."""
    if model.model_type != "gpt_oss" or model.in_blocks:
        return source
    copy = source.with_name(f"{source.name}-plain-experts")
    shutil.copytree(source, copy)
    gpt_oss_layouts.to_plain(copy)
    return copy


@functools.cache
def _source(name: str, dtype: str) -> Path:
    folder = Path(_root().name) / f"{name}-{dtype}"
    save_source(MODELS[name], folder, dtype=dtype)
    return folder
