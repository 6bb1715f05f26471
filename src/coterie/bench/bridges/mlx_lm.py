"""mlx-lm on the CPU, as it is and patched: the same model in the same process, its classes changed to and fro."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models import gemma4, gpt_oss, mixtral, olmoe, qwen3_moe
from mlx_lm.models.cache import make_prompt_cache

from coterie.arrays import from_numpy
from coterie.bench.bridges.rounds import Way
from coterie.bench.measure import Clock
from coterie.bench.random_model import RandomCheckpoint
from coterie.bench.real_models import RealModel
from coterie.formats import Format, Packed
from coterie.integrations.mlx_lm import patch, unpatch
from coterie.models.families import family_of
from coterie.models.weights import PLAIN_KINDS, slots

_MODULES = {"qwen3_moe": qwen3_moe, "gemma4": gemma4, "mixtral": mixtral, "olmoe": olmoe, "gpt_oss": gpt_oss}


def ways(real: RealModel, n_layers: int, fmt: Format) -> list[Way]:
    """mlx-lm as it is, and patched, on random packed weights with scales in bfloat16, which activations are in, too."""
    mx.set_default_device(mx.cpu)
    model = random_model(real, n_layers, fmt)
    return [_Way("mlx-lm", False, model, unpatch), _Way("mlx-lm, patched", True, model, patch)]


class _Way(Way):
    clock: Clock = time.perf_counter

    def __init__(self, label: str, ours: bool, model: Any, enter: Callable[[Any], Any]) -> None:
        super().__init__(label, ours, sum(int(array.nbytes) for _, array in tree_flatten(model.parameters())))
        self._model, self._enter = model, enter

    def prefill(self, ids: Sequence[int]) -> float:
        self._enter(self._model)
        start = self.clock()
        self._read(ids)
        return self.clock() - start

    def decode(self, ids: Sequence[int], n_steps: int) -> float:
        # Our kernels make the cache for both: without them a long prompt takes minutes.
        patch(self._model)
        cache = self._read(ids)
        self._enter(self._model)
        begin = end = 0.0
        prompt = mx.array(list(ids[-1:]))
        for index, _ in enumerate(generate_step(prompt, self._model, max_tokens=n_steps + 1, prompt_cache=cache)):
            end = self.clock()
            begin = begin if index else end
        # mlx-lm computes a token ahead; who is measured next must not wait for it.
        mx.eval([layer.state for layer in cache])
        return (end - begin) / n_steps

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self._enter(self._model)
        return np.array(self._model(mx.array([list(ids)]))[0, -1].astype(mx.float32))

    def exact_logits(self, ids: Sequence[int]) -> np.ndarray:
        unpatch(self._model)
        self._model.set_dtype(mx.float32)
        return self.logits(ids)

    def _read(self, ids: Sequence[int]) -> Any:
        """A prompt as mlx-lm reads it: its keys and values, and logits of the last token alone."""
        cache = make_prompt_cache(self._model)
        if len(ids) > 1:
            self._model(mx.array([list(ids[:-1])]), cache=cache)
            mx.eval([layer.state for layer in cache])
        mx.eval(self._model(mx.array([list(ids[-1:])]), cache=cache))
        return cache


def random_model(real: RealModel, n_layers: int, fmt: Format) -> Any:
    """mlx-lm's model at the dimensions of `real`, its weights packed from the start."""
    config = real.config_with(n_layers)
    family = family_of(config)
    architecture = family.architecture(config)
    checkpoint = RandomCheckpoint(architecture, family, config, fmt)
    tensors: dict[str, Any] = {}
    formats: dict[str, Format] = {}
    for slot in slots(architecture):
        if slot.kind in PLAIN_KINDS:
            tensors[slot.tensor] = mx.array(checkpoint.tensors[slot.tensor]).astype(mx.bfloat16)
            continue
        matrix = checkpoint.packed(slot.path, slot.shape[-1])
        if not isinstance(matrix, Packed):
            tensors[slot.tensor] = from_numpy(matrix, "mlx")
            continue
        formats[slot.path] = matrix.format
        parts = {"weight": matrix.codes, "scales": matrix.scales, "biases": matrix.biases}
        tensors |= {f"{slot.path}.{name}": from_numpy(p, "mlx") for name, p in parts.items() if p is not None}
    module = _MODULES[config["model_type"]]
    model = module.Model(module.ModelArgs.from_dict(_for_mlx_lm(config)))
    nn.quantize(model, class_predicate=lambda path, _: _options(formats.get(path)))
    model.load_weights(list(tensors.items()))
    model.eval()
    mx.eval(model.parameters())
    return model


def _for_mlx_lm(config: dict[str, Any]) -> dict[str, Any]:
    """It asks for the width of dense layers where there are none, too, and for the vocabulary at the top."""
    vocabulary = config.get("text_config", config)["vocab_size"]
    return {"intermediate_size": 1, **config, "vocab_size": vocabulary}


def _options(fmt: Format | None) -> dict[str, Any] | bool:
    return False if fmt is None else {"group_size": fmt.group_size, "bits": fmt.bits, "mode": fmt.mode}
