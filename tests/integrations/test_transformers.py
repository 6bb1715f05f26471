"""Checkpoints in MLX's format in transformers: logits, texts and saved files, for every family; what is refused."""

import copy
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import coterie.integrations.transformers as bridge
from coterie.checkpoint import open_checkpoint
from coterie.errors import BackendUnavailableError, CheckpointError, CoterieError, UnsupportedError
from coterie.integrations.transformers.modules import PackedExperts, PackedLinear, PackedMatrix
from coterie.integrations.transformers.names import FAMILIES
from coterie.ops import dispatch
from models import parity, references, tiny

BOUND = 1e-5
"""As for the decoder of Coterie: see `parity.py`."""

IDS = torch.tensor([tiny.token_ids()])
CASES = [
    *((name, "4 bits g64") for name in tiny.MODELS if name.removesuffix("_groups").removesuffix("_tied") in FAMILIES),
    ("qwen3_moe", "mixed"),
    ("gemma4_per_layer_experts", "8 bits g64"),
    ("gpt_oss_blocks", "4 bits g32"),
    ("mixtral", "mxfp4"),
    ("deepseek_v3", "mxfp4"),
]
NAMES = ("qwen3_moe_tied", "gemma4", "mixtral", "olmoe", "gpt_oss", "glm4_moe", "deepseek_v2", "deepseek_v3")
"""One of each family."""


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options)


@functools.cache
def bridged(name: str, form: str) -> Any:
    """The model of a checkpoint, through the bridge; for tests that do not change it."""
    return load(tiny.checkpoint(name, form))


@functools.cache
def reference(name: str, form: str, dtype: str = "float32") -> Any:
    """transformers' own model in float64, on weights that were dequantised by a decoder of the tests' own."""
    made = tiny.transformers_model(tiny.MODELS[name]).double()
    made.set_experts_implementation("eager")
    weights = references.transformers_names(references.dequantised(tiny.checkpoint(name, form, dtype)))
    made.load_state_dict({key: torch.from_numpy(value).double() for key, value in weights.items()}, strict=False)
    made.tie_weights()
    return made


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> np.ndarray:
    found: np.ndarray = model(ids).logits[0].double().numpy()
    return found


@pytest.mark.parametrize(("name", "form"), CASES)
def test_logits_are_those_of_the_dequantised_model_in_float64(name: str, form: str) -> None:
    error = parity.relative_error(logits(bridged(name, form)), logits(reference(name, form)))
    assert 0 < error < BOUND


@pytest.mark.parametrize("name", NAMES)
def test_generate_makes_the_text_of_the_dequantised_model(name: str) -> None:
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    made = bridged(name, "4 bits g64").generate(IDS[:, :8], **options)
    assert made.tolist() == reference(name, "4 bits g64").generate(IDS[:, :8], **options).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_weights_stay_packed_and_are_not_copied(name: str) -> None:
    folder, model = tiny.checkpoint(name, "4 bits g64"), bridged(name, "4 bits g64")
    logits(model)
    with open_checkpoint(folder) as checkpoint:
        stored = checkpoint.nbytes
    assert sum(parameter.nbytes for parameter in model.parameters()) <= stored
    layers = [module for module in model.modules() if isinstance(module, PackedMatrix)]
    assert len(layers) > 10
    for layer in layers:
        native = layer.matrix().derived.get("native")
        assert native is None or np.shares_memory(native.codes, layer._parameters["weight"].numpy())
    experts = next(module for module in model.modules() if isinstance(module, PackedExperts))
    taken = experts.remembered[1].native.gate
    assert np.shares_memory(taken.codes, experts.gate_proj.weight.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_is_the_same_checkpoint(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source, model = tiny.checkpoint(name, "4 bits g64"), bridged(name, "4 bits g64")
    model.save_pretrained(tmp_path)
    stored, saved = (load_file(folder / "model.safetensors") for folder in (source, tmp_path))
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[key], saved[key]) for key in stored)
    assert np.array_equal(logits(load(tmp_path)), logits(model))
    declared = [json.loads((folder / "config.json").read_text())["quantization"] for folder in (source, tmp_path)]
    assert declared[0] == declared[1]
    assert parity.relative_error(parity.logits(parity.decoder(tmp_path), "whole"), logits(model)) < BOUND


def test_a_model_in_bfloat16_keeps_its_scales_and_a_copy_computes_the_same() -> None:
    folder = tiny.checkpoint("qwen3_moe", "4 bits g64", "bfloat16")
    model, exact = load(folder), load(folder, dtype=torch.float32)
    assert model.dtype == torch.bfloat16
    assert all(p.dtype in (torch.bfloat16, torch.uint32) for p in model.parameters())
    assert {p.dtype for p in exact.model.norm.parameters()} == {torch.float32}
    made = reference("qwen3_moe", "4 bits g64", "bfloat16")
    assert parity.relative_error(logits(exact), logits(made)) < BOUND
    assert np.array_equal(logits(copy.deepcopy(model)), logits(model))
    # bf16's scales are exact in f32, so that only the activations' dtype changes.
    assert parity.relative_error(logits(model.to(torch.float32)), logits(made)) < BOUND


def test_the_text_part_of_a_model_with_images_loads_without_them(tmp_path: Path) -> None:
    folder = _changed(tmp_path, "gemma4", vision_config={"model_type": "gemma4_vision", "num_hidden_layers": 1})
    model = load(folder)
    assert model.model.vision_tower is None
    assert np.array_equal(logits(model), logits(bridged("gemma4", "4 bits g64")))


def test_what_is_not_declared_in_mlx_words_is_left_to_transformers() -> None:
    model = load(tiny.source("olmoe"))
    assert not any(isinstance(module, PackedMatrix) for module in model.modules())


def test_nothing_heavy_is_imported_unless_asked_for_and_an_old_transformers_is_refused() -> None:
    _fresh("import coterie.integrations, sys; assert not {'torch', 'transformers'} & sys.modules.keys()")
    old = "import sys; sys.modules['transformers.core_model_loading'] = None; import coterie.integrations.transformers"
    with pytest.raises(AssertionError, match=r"needs transformers 5\.23 or newer"):
        _fresh(old)


def _fresh(code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-500:]


# Refusals ------------------------------------------------------------------------------------------------------------


def _changed(folder: Path, name: str, form: str = "4 bits g64", **config: Any) -> Path:
    """A copy of a checkpoint with other values in its config."""
    copied = folder / "changed"
    shutil.copytree(tiny.checkpoint(name, form), copied)
    path = copied / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return copied


def _edit_tensors(folder: Path, edit: Any) -> Path:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    return folder


def test_a_gradient_is_refused_by_name() -> None:
    model = bridged("olmoe", "4 bits g64")
    found = model(IDS).logits
    with pytest.raises(UnsupportedError, match="gradient"):
        found.sum().backward()


@pytest.mark.parametrize("device_map", [{"model": "cpu", "lm_head": "disk"}, "mps", "xpu:0"])
def test_other_devices_are_refused_by_name(device_map: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"device_map names '(disk|mps|xpu)'.*\"cpu\" and \"cuda\""):
        bridge.MlxQuantizer(bridge.MlxConfig(bits=4, group_size=64)).validate_environment(device_map=device_map)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device_map", ["cuda", 0, {"": "cuda:0"}, {"model": "cpu", "lm_head": "cuda"}])
def test_what_a_gpu_lacks_is_said_before_anything_is_loaded(device_map: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    pytest.importorskip("coterie.backends.cuda")  # as it is interpreted: what was imported before must not be mixed
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    monkeypatch.delitem(dispatch._MODULES, "cuda", raising=False)
    with pytest.raises(BackendUnavailableError, match=r"built for the CPU alone|the GPU cannot be used"):
        bridge.MlxQuantizer(bridge.MlxConfig(bits=4, group_size=64)).validate_environment(device_map=device_map)


def test_a_tensor_on_another_device_is_refused_by_name() -> None:
    linear = next(m for m in bridged("olmoe", "4 bits g64").modules() if isinstance(m, PackedLinear))
    with pytest.raises(CoterieError, match="lives on meta"):
        linear(torch.empty(1, linear.in_features, device="meta"))


def test_quantising_while_loading_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="coterie convert"):
        load(tiny.source("olmoe"), quantization_config=bridge.MlxConfig(bits=4, group_size=64))


def test_other_families_are_refused_by_name(tmp_path: Path) -> None:
    folder = _changed(tmp_path, "qwen3_moe", model_type="qwen2_moe")
    with pytest.raises(UnsupportedError, match=r"qwen2_moe.*loads deepseek_v2"):
        load(folder)


def test_contradictory_configs_and_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = _changed(tmp_path, "olmoe", quantization_config={"group_size": 64, "bits": 8})
    with pytest.raises(CoterieError, match="say different things"):
        load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight"),
        (lambda tensors: tensors.pop("model.layers.0.mlp.switch_mlp.up_proj.weight"), "up_proj"),
        (lambda tensors: tensors.update(stray=torch.zeros(2)), "does not use.*stray"),
        (lambda tensors: tensors["model.norm.weight"].fill_(torch.nan), "NaN|nan"),
        (lambda tensors: _halve(tensors, "model.layers.0.mlp.switch_mlp.up_proj"), "config.json implies"),
    ],
    ids=["missing", "missing experts", "stray", "not finite", "shape"],
)
def test_a_checkpoint_that_does_not_fit_is_refused(edit: Any, message: str, tmp_path: Path) -> None:
    folder = _edit_tensors(_changed(tmp_path, "olmoe"), edit)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def _halve(tensors: dict[str, torch.Tensor], path: str) -> None:
    for part in ("weight", "scales", "biases"):
        tensors[f"{path}.{part}"] = tensors[f"{path}.{part}"][:, ::2].contiguous()
