"""Patched models of mlx-lm against the same models as they were: every family, both ways of reading, and back."""

import subprocess
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.switch_layers import SwitchGLU
from mlx_lm.utils import load_model

from coterie.errors import CoterieError
from coterie.integrations.mlx_lm import patch, patched_loading, swaps, unpatch
from models import tiny

FAMILIES = {
    "qwen3_moe": "4 bits g32",
    "qwen3_moe_tied": "4 bits g64",
    "gemma4": "8 bits g64",
    "mixtral": "4 bits g64",
    "olmoe": "mixed",
    "gpt_oss": "mxfp4",
    "glm4_moe": "4 bits g32",
    "deepseek_v2": "4 bits g32",
    "deepseek_v3": "mixed",
}
CLOSE = 1e-5
"""What docs/numerics.md allows whole models in f32."""


def loaded(name: str, format_name: str, dtype: mx.Dtype = mx.float32) -> Any:
    mx.set_default_device(mx.cpu)
    model, _ = load_model(tiny.checkpoint(name, format_name))
    model.set_dtype(dtype)
    return model


def logits(model: Any, ids: list[int] | None = None) -> np.ndarray:
    return np.array(model(mx.array([ids or tiny.token_ids()])).astype(mx.float32))[0]


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def layers_of_experts(model: Any) -> int:
    return sum(isinstance(module, SwitchGLU) for _, module in model.named_modules())


@pytest.mark.parametrize(("name", "format_name"), FAMILIES.items(), ids=FAMILIES)
def test_a_patched_model_has_the_same_logits_and_an_unpatched_one_the_same_bits(name: str, format_name: str) -> None:
    model = loaded(name, format_name)
    wanted = logits(model)
    with patch(model, all_logits=True) as done:
        assert done.n_experts_layers == layers_of_experts(model) > 0
        assert done.left == {}
        assert len(done.swapped) > done.n_experts_layers
        found = logits(model)
    assert 0 < distance(found, wanted) < CLOSE
    assert np.array_equal(logits(model), wanted)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v2"])
def test_tokens_one_by_one_are_the_same(name: str) -> None:
    model = loaded(name, "4 bits g32")
    prompt = mx.array(tiny.token_ids(20))
    wanted = [(token, probs) for (token, probs), _ in zip(generate_step(prompt, model), range(12), strict=False)]
    patch(model)
    found = [(token, probs) for (token, probs), _ in zip(generate_step(prompt, model), range(12), strict=False)]
    assert [token for token, _ in found] == [token for token, _ in wanted]
    for (_, ours), (_, theirs) in zip(found, wanted, strict=True):
        assert distance(np.array(ours), np.array(theirs)) < CLOSE


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "deepseek_v2"])
def test_in_bfloat16_a_patched_model_is_closer_to_its_logits_in_f32(name: str) -> None:
    model = loaded(name, "4 bits g32", mx.bfloat16)
    before = logits(model)
    with patch(model, all_logits=True):
        after = logits(model)
    model.set_dtype(mx.float32)
    exact = logits(model)
    assert distance(after, exact) < distance(before, exact) < 0.2


def test_unquantised_experts_in_bfloat16_run_which_mlx_has_no_kernel_for_on_the_cpu() -> None:
    model = loaded("qwen3_moe", "plain", mx.bfloat16)
    with patch(model):
        found = logits(model)
    model.set_dtype(mx.float32)
    assert distance(found, logits(model)) < 0.1


def test_the_lazy_way_of_gpus_has_the_same_logits_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swaps, "_place", lambda *_: "gpu")
    for name in ("qwen3_moe", "gpt_oss"):
        model = loaded(name, FAMILIES[name])
        few = tiny.token_ids(5)
        wanted = logits(model, few)
        with patch(model):
            assert distance(logits(model, few), wanted) < CLOSE
            layer = next(swaps_of(model))
            assert isinstance(layer._coterie.record.gate.codes, mx.array)
            x, ids = mx.random.normal((3, layer.down_proj.output_dims)), mx.zeros((3, 2), mx.uint32)
            assert distance(np.array(mx.compile(layer)(x, ids)), np.array(layer(x, ids))) < CLOSE


def swaps_of(model: Any) -> Any:
    return (module for _, module in model.named_modules() if isinstance(module, swaps.CoterieSwitchGLU))


# Memory --------------------------------------------------------------------------------------------------------------


def address(array: mx.array) -> int:
    return np.frombuffer(memoryview(array), np.uint8).ctypes.data  # type: ignore[arg-type]


def test_weights_stay_where_mlx_holds_them() -> None:
    model = loaded("qwen3_moe", "4 bits g32", mx.bfloat16)
    mx.eval(model.parameters())
    patch(model)
    logits(model)
    for layer in swaps_of(model):
        for linear, ours in zip(
            (layer.gate_proj, layer.up_proj, layer.down_proj),
            (layer._coterie.record.gate, layer._coterie.record.up, layer._coterie.record.down),
            strict=True,
        ):
            assert ours.codes.ctypes.data == address(linear.weight)
            assert ours.scales.ctypes.data == address(linear.scales)
            assert ours.biases.ctypes.data == address(linear.biases)


def test_weights_that_lie_in_strides_are_not_held_twice() -> None:
    linear = quantized_linear(64, 32)
    x = mx.random.normal((3, 64))
    wanted = np.array(linear(x))
    linear.weight = mx.stack([linear.weight, linear.weight], -1)[..., 0]
    mx.eval(linear.weight)
    assert not memoryview(linear.weight).c_contiguous
    patch(linear_in(linear))
    assert distance(np.array(linear(x)), wanted) < CLOSE
    linear(x)
    assert linear._coterie.record.codes.ctypes.data == address(linear.weight)


def test_new_weights_are_noticed_and_old_ones_assigned_to_do_no_harm() -> None:
    linear = quantized_linear(64, 32)
    model, x = linear_in(linear), mx.random.normal((3, 64))
    patch(model)
    linear(x)
    other = quantized_linear(64, 32)
    linear.update(other.parameters())
    assert distance(np.array(linear(x)), np.array(other(x))) < CLOSE
    linear.weight[:] = 0
    mx.eval(linear.weight)
    assert np.isfinite(np.array(linear(x))).all()


def quantized_linear(n_inputs: int, n_outputs: int, **options: Any) -> nn.QuantizedLinear:
    return nn.QuantizedLinear.from_linear(nn.Linear(n_inputs, n_outputs), group_size=32, bits=4, **options)


def linear_in(module: nn.Module) -> nn.Module:
    model = nn.Module()
    model.inner = module
    model.eval()
    return model


# Where our kernels step back -----------------------------------------------------------------------------------------


def test_a_model_that_trains_and_one_that_is_traced_do_what_they_did() -> None:
    model = loaded("qwen3_moe", "4 bits g32")
    wanted = logits(model)
    patch(model)
    model.train()
    assert np.array_equal(logits(model), wanted)
    model.eval()
    layer = next(swaps_of(model))
    x, ids = mx.random.normal((3, layer.down_proj.output_dims)), mx.array([[0, 1]] * 3, mx.uint32)
    assert distance(np.array(mx.compile(layer)(x, ids)), np.array(layer(x, ids))) < CLOSE


def test_gradients_are_right_in_training_and_refused_in_evaluation() -> None:
    linear, layer = quantized_linear(64, 32), SwitchGLU(64, 32, 4)
    x, ids = mx.random.normal((3, 64)), mx.array([[0, 1]] * 3, mx.uint32)
    model = linear_in(linear)
    model.experts = layer
    model.eval()

    def loss(x: mx.array) -> mx.array:
        return mx.sum(linear(x)) + mx.sum(layer(x, ids))

    wanted = np.array(mx.grad(loss)(x))
    patch(model)
    model.train()
    assert np.array_equal(np.array(mx.grad(loss)(x)), wanted)
    model.eval()
    for module in (linear, lambda x: layer(x, ids)):
        with pytest.raises(CoterieError, match="evaluation mode") as refusal:
            mx.grad(lambda x, of=module: mx.sum(of(x)))(x)
        assert refusal.value.code == "gradient"
    with pytest.raises(CoterieError, match="evaluation mode"):
        nn.value_and_grad(layer, lambda: mx.sum(layer(x, ids)))()


def test_logits_of_many_positions_are_left_to_mlx_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    ours = swaps.quantized_matmul
    monkeypatch.setattr(
        swaps, "quantized_matmul", lambda x, w, **options: seen.append(w.shape) or ours(x, w, **options)
    )
    for name in ("qwen3_moe", "qwen3_moe_tied"):
        model = loaded(name, "4 bits g32")
        for n_tokens, all_logits, at_once in ((16, False, True), (17, False, False), (17, True, True)):
            patch(model, all_logits=all_logits)
            seen.clear()
            logits(model, tiny.token_ids(n_tokens))
            assert (tiny.VOCABULARY in [shape[0] for shape in seen]) == at_once


def test_no_token_at_all() -> None:
    model = loaded("qwen3_moe", "4 bits g32")
    patch(model)
    layer = next(swaps_of(model))
    width = layer.down_proj.output_dims
    assert layer(mx.zeros((0, width)), mx.zeros((0, 2), mx.uint32)).shape == (0, 2, width)


def test_ids_that_no_expert_has_are_refused() -> None:
    model = loaded("qwen3_moe", "4 bits g32")
    patch(model)
    layer = next(swaps_of(model))
    x = mx.zeros((1, layer.down_proj.output_dims))
    with pytest.raises(CoterieError, match="99"):
        layer(x, mx.array([[0, 99]], mx.uint32))


# Layers that are not fused -------------------------------------------------------------------------------------------


class Squared(nn.Module):
    """An activation that nobody else has."""

    def __call__(self, x: mx.array, gate: mx.array) -> mx.array:
        return x * gate * gate


@pytest.mark.parametrize("n_tokens", [3, 40])
def test_an_activation_of_their_own_leaves_the_products_to_us(n_tokens: int) -> None:
    layer = SwitchGLU(64, 32, 6, activation=Squared(), bias=True)
    nn.quantize(layer, group_size=32, bits=4)
    model = linear_in(layer)
    x, ids = mx.random.normal((n_tokens, 64)), mx.random.randint(0, 6, (n_tokens, 2)).astype(mx.uint32)
    wanted = np.array(layer(x, ids))
    done = patch(model)
    assert done.left == {"inner": "its activation Squared is none of ours"}
    assert set(done.swapped.values()) == {"QuantizedSwitchLinear"}
    assert 0 < distance(np.array(layer(x, ids)), wanted) < CLOSE


def test_without_linears_only_layers_of_experts_are_swapped() -> None:
    model = loaded("qwen3_moe", "4 bits g32")
    done = patch(model, linears=False)
    assert set(done.swapped.values()) == {"SwitchGLU"}
    patch(model)
    assert any(type(module) is swaps.CoterieQuantizedLinear for _, module in model.named_modules())
    unpatch(model)
    assert not any(hasattr(module, "_coterie") for _, module in model.named_modules())


def test_what_cannot_be_patched_is_refused() -> None:
    with pytest.raises(CoterieError, match="as mlx_lm") as refusal:
        patch(object())
    assert refusal.value.code == "model_kind"
    with pytest.raises(CoterieError, match="neither") as refusal:
        patch(nn.Linear(4, 4))
    assert refusal.value.code == "nothing_to_patch"


def test_adapters_go_on_top() -> None:
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = loaded("qwen3_moe", "4 bits g32")
    keys = ["self_attn.q_proj", "mlp.switch_mlp.gate_proj"]
    settings = {"rank": 2, "scale": 1.0, "dropout": 0.0, "keys": keys}
    patch(model)
    linear_to_lora_layers(model, 3, settings)
    model.eval()
    found = logits(model)
    unpatch(model)
    assert distance(found, logits(model)) < CLOSE


def test_every_model_that_mlx_lm_loads_is_patched() -> None:
    folder = str(tiny.checkpoint("qwen3_moe", "4 bits g32"))
    told = []
    with patched_loading(tell=told.append):
        import mlx_lm

        model, _ = mlx_lm.load(folder)
    assert [done.model for done in told] == [model]
    assert next(swaps_of(model)) is not None
    assert next(swaps_of(load_model(tiny.checkpoint("qwen3_moe", "4 bits g32"))[0]), None) is None


def test_importing_the_bridge_imports_neither_mlx_nor_mlx_lm() -> None:
    code = "import coterie.integrations.mlx_lm, sys; print('mlx' in sys.modules, 'mlx_lm' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["False", "False"]
