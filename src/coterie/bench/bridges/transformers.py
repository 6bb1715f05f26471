"""transformers on the CPU: its own experts in bf16, and packed weights through the bridge; the same numbers in both."""

import copy
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

import coterie.integrations.transformers
from coterie.bench.bridges.rounds import Way
from coterie.bench.measure import Clock
from coterie.bench.random_model import RandomCheckpoint
from coterie.bench.real_models import RealModel
from coterie.checkpoint import write_checkpoint
from coterie.errors import CapacityError
from coterie.formats import Format, Packed
from coterie.integrations.transformers.modules import PackedExperts, PackedMatrix
from coterie.models.families import family_of
from coterie.models.weights import slots
from coterie.ops import dequantize
from coterie.runtime.memory import available_memory

assert coterie.integrations.transformers  # which registers the quantizer

OWN_EXPERTS = ("eager", "grouped_mm", "batched_mm")
"""transformers' experts implementations that run on a CPU; the first is mostly the fastest."""

_MARGIN = 1.4


def ways(real: RealModel, n_layers: int, fmt: Format) -> list[Way]:
    """Each of transformers' own experts implementations on dequantised weights, and the bridge; activations in bf16."""
    transformers.utils.logging.disable_progress_bar()
    packed = random_model(real, n_layers, fmt)
    plain = _plain_model(packed)
    for model in (packed, plain):
        _touch(model)
    own = [_Way(f"transformers, {name}", plain, packed, name) for name in OWN_EXPERTS]
    return [*own, _Way("transformers, bridge", packed, packed)]


class _Way(Way):
    clock: Clock = time.perf_counter

    def __init__(self, label: str, model: Any, packed: Any, experts: str | None = None) -> None:
        super().__init__(label, experts is None, sum(parameter.nbytes for parameter in model.parameters()))
        self._model, self._packed, self._experts = model, packed, experts

    def prefill(self, ids: Sequence[int]) -> float:
        start = self.clock()
        self._run(ids)
        return self.clock() - start

    def decode(self, ids: Sequence[int], n_steps: int) -> float:
        # The bridge makes the cache for all: some of transformers' experts take gigabytes for a long prompt.
        cache = DynamicCache(config=self._packed.config)
        with torch.inference_mode():
            _forward(self._packed, ids, cache)
        rng = np.random.default_rng(1)
        seconds = []
        for token in rng.choice(ids, n_steps).tolist():
            start = self.clock()
            self._run([token], cache)
            seconds.append(self.clock() - start)
        return statistics.median(seconds)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return self._run(ids)

    def exact_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Each part of the model is in f32 only while it runs: all of it might not fit."""
        inner = self._model.get_decoder()
        for part in (inner.embed_tokens, *inner.layers, inner.norm, self._model.lm_head):
            part.register_forward_pre_hook(lambda module, _: module.float() and None)
            part.register_forward_hook(lambda module, *_: module.bfloat16() and None)
        return self._run(ids)

    def _run(self, ids: Sequence[int], cache: Any = None) -> np.ndarray:
        if self._experts is not None:
            self._model.set_experts_implementation(self._experts)
        with torch.inference_mode():
            found = _forward(self._model, ids, cache)
        logits: np.ndarray = found[0, -1].float().numpy()
        return logits


def _forward(model: Any, ids: Sequence[int], cache: Any) -> torch.Tensor:
    """Logits of the last token. The cache goes by its place: transformers changed its name in release 5.24."""
    logits: torch.Tensor = model(torch.tensor([list(ids)]), None, None, cache, logits_to_keep=1).logits
    return logits


def random_model(real: RealModel, n_layers: int, fmt: Format) -> Any:
    """A model of transformers through the bridge, from a checkpoint that is gone when it is loaded."""
    config = real.config_with(n_layers)
    family = family_of(config)
    architecture = family.architecture(config)
    checkpoint = RandomCheckpoint(architecture, family, config, fmt)
    tensors: dict[str, np.ndarray] = {}
    declared: dict[str, Any] = {"group_size": fmt.group_size, "bits": fmt.bits, "mode": fmt.mode}
    for slot in slots(architecture):
        matrix = checkpoint.tensors[slot.tensor]
        if matrix.dtype != np.uint32:
            tensors[slot.tensor] = matrix
            continue
        stored = checkpoint.packed(slot.path, slot.shape[-1])
        assert isinstance(stored, Packed)
        parts = {"weight": stored.codes, "scales": stored.scales, "biases": stored.biases}
        tensors |= {f"{slot.path}.{name}": part for name, part in parts.items() if part is not None}
        if stored.format != fmt:
            declared[slot.path] = {"group_size": stored.group_size, "bits": stored.bits, "mode": stored.mode}
    _check_room(tensors, fmt)
    with tempfile.TemporaryDirectory(prefix="coterie-") as folder:
        path = Path(folder) / "model"
        write_checkpoint(path, tensors, {**config, "quantization": declared})
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)


def _check_room(tensors: dict[str, np.ndarray], fmt: Format) -> None:
    """The packed weights are there once; they are loaded, and then dequantised."""
    packed = sum(array.nbytes for array in tensors.values())
    codes = sum(array.nbytes for array in tensors.values() if array.dtype == np.uint32)
    needed, available = int(_MARGIN * (packed + codes * 16 / fmt.bits)), available_memory()
    if available is not None and needed > available:
        raise CapacityError(
            f"the weights need {needed / 2**30:.1f} GiB, packed and in bf16, and {available / 2**30:.1f} GiB are "
            "available; ask for fewer --layers",
            code="bench_memory",
        )


def _plain_model(packed: Any) -> Any:
    """transformers' own model with the weights of `packed`, dequantised to bf16."""
    config = copy.deepcopy(packed.config)
    del config.quantization_config, config.quantization
    return type(packed).from_pretrained(None, config=config, state_dict=dict(_plain(packed)), dtype=torch.bfloat16)


def _plain(model: Any) -> Iterator[tuple[str, Any]]:
    done: set[str] = set()
    for path, module in model.named_modules():
        if any(path.startswith(f"{above}.") for above in done):
            continue
        if isinstance(module, PackedExperts):
            done.add(path)
            yield f"{path}.gate_up_proj", torch.cat((_bf16(module.gate_proj), _bf16(module.up_proj)), dim=1)
            yield f"{path}.down_proj", _bf16(module.down_proj)
        elif isinstance(module, PackedMatrix):
            yield f"{path}.weight", _bf16(module)
        else:
            yield from ((f"{path}.{name}", value) for name, value in module._parameters.items() if value is not None)


def _bf16(module: PackedMatrix) -> Any:
    found = module.matrix()
    if not isinstance(found, Packed):
        return found
    return dequantize(found.codes, found.scales, found.biases, found.group_size, found.bits, found.mode, "bfloat16")


def _touch(model: Any) -> None:
    """Read every weight once: files are mapped, and what no warm-up routes to would be paged in while it is timed."""
    for parameter in model.parameters():
        parameter.view(torch.uint8).view(-1)[:: 1 << 12].max()
