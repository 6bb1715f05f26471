"""`experts_implementation="coterie"` on unquantised models of transformers."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import coterie.integrations.transformers  # noqa: F401
from coterie.errors import UnsupportedError
from coterie.integrations.transformers.experts import _record
from models import parity, tiny

NAMES = ("qwen3_moe", "gemma4", "gemma4_text", "mixtral", "olmoe", "gpt_oss", "glm4_moe", "deepseek_v2", "deepseek_v3")
IDS = torch.tensor([tiny.token_ids()])


def load(name: str, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.source(name), **options)


def experts_of(model: Any) -> Any:
    return next(module for module in model.modules() if "down_proj" in module._parameters)


@torch.no_grad()
def logits(model: Any) -> np.ndarray:
    found: np.ndarray = model(IDS).logits[0].double().numpy()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_models_own_experts_in_float64(name: str) -> None:
    model = load(name, experts_implementation="coterie")
    exact = copy.deepcopy(model).double()
    exact.set_experts_implementation("eager")
    assert 0 < parity.relative_error(logits(model), logits(exact)) < 1e-5


def test_generate_makes_the_same_text_and_other_implementations_stay() -> None:
    model = load("mixtral", experts_implementation="coterie")
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones(1, 8, dtype=torch.long)}
    text = model.generate(IDS[:, :8], **options).tolist()
    model.set_experts_implementation("grouped_mm")
    assert model.generate(IDS[:, :8], **options).tolist() == text


def test_weights_are_used_where_they_are_and_followed_when_they_change() -> None:
    model = load("olmoe", experts_implementation="coterie")
    experts, before = experts_of(model), logits(model)
    assert np.shares_memory(_record(experts).native.gate, experts.gate_up_proj.detach().numpy())
    with torch.no_grad():
        experts.down_proj.mul_(2)
    changed = logits(model)
    model.set_experts_implementation("eager")
    assert parity.relative_error(changed, logits(model)) < 1e-5 < parity.relative_error(changed, before)


def test_transposed_weights_are_copied_once_and_followed_when_they_change() -> None:
    model = load("gpt_oss", experts_implementation="coterie")
    experts = experts_of(model)
    logits(model)
    assert _record(experts) is _record(experts)
    with torch.no_grad():
        experts.gate_up_proj.mul_(2)
    changed = logits(model)
    model.set_experts_implementation("eager")
    assert parity.relative_error(changed, logits(model)) < 1e-5


def test_a_gradient_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="gradient"):
        load("olmoe", experts_implementation="coterie")(IDS).logits.sum().backward()


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("act_fn", torch.nn.Tanh(), "Tanh"),
        ("has_gate", False, "without a gate"),
        ("has_post_expert_norm", True, "with a norm"),
        ("_is_expert_parallel", True, "spread over processes"),
    ],
)
def test_experts_of_another_kind_are_refused_by_name(attribute: str, value: Any, message: str) -> None:
    model = load("olmoe", experts_implementation="coterie")
    setattr(experts_of(model), attribute, value)
    with pytest.raises(UnsupportedError, match=message):
        logits(model)


def test_gpt_oss_with_another_clamp_is_refused() -> None:
    model = load("gpt_oss", experts_implementation="coterie")
    experts_of(model).limit = 5.0
    with pytest.raises(UnsupportedError, match="a function of its own"):
        logits(model)
