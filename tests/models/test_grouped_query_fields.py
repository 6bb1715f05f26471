"""What the configs of mixtral, olmoe, gpt_oss and glm4_moe become: the fields by which these decoders differ."""

import dataclasses
from typing import Any

import pytest

from coterie.models.architecture import Architecture
from models import tiny
from models.test_families import config_of, read


def test_the_fields_of_mixtral() -> None:
    layer = read(config_of("mixtral")).layers[0]
    assert layer.attention.window is None
    assert (layer.attention.modules.query_norm, layer.attention.modules.key_norm) == (None, None)
    assert layer.mlp is None
    assert layer.moe is not None
    assert (layer.moe.n_experts, layer.moe.router.top_k, layer.moe.router.renormalize) == (4, 2, True)
    assert read(config_of("mixtral_sliding")).layers[1].attention.window == tiny.WINDOW
    assert read(config_of("mixtral", head_dim=64)).layers[0].attention.scale == 64**-0.5


def test_the_fields_of_olmoe() -> None:
    attention = read(config_of("olmoe")).layers[0].attention
    assert (attention.norm_span, attention.clip, attention.input_bias) == ("projection", None, False)
    clipped = read(config_of("olmoe_clipped")).layers[0]
    assert (clipped.attention.clip, clipped.attention.input_bias, clipped.attention.output_bias) == (0.75, True, True)
    assert clipped.moe is not None
    assert clipped.moe.router.renormalize


def test_the_fields_of_gpt_oss() -> None:
    found = read(config_of("gpt_oss"))
    assert [layer.attention.window for layer in found.layers] == [tiny.WINDOW, None] * 2
    attention, moe = found.layers[0].attention, found.layers[0].moe
    assert moe is not None
    assert (attention.input_bias, attention.output_bias, moe.bias, moe.router.bias) == (True,) * 4
    assert attention.modules.sinks == "self_attn.sinks"
    assert attention.rope.amplitude == pytest.approx(1.3465735902799727)
    assert found.activation == "swiglu_clamped"
    # As gpt-oss-20b was published, with both names of two things.
    published = config_of("gpt_oss", experts_per_token=4, initial_context_length=4096, layer_types=...)
    assert read(published) == found
    unbiased = read(config_of("gpt_oss", attention_bias=False)).layers[0].attention
    assert (unbiased.input_bias, unbiased.output_bias) == (False, False)


def test_the_fields_of_glm4_moe() -> None:
    found = read(config_of("glm4_moe_groups"))
    moe, shared = found.layers[0].moe, found.layers[0].mlp
    assert moe is not None
    assert shared is not None
    router = moe.router
    assert (router.scoring, router.group_score, router.n_groups, router.top_groups) == ("sigmoid", "top2", 4, 2)
    assert (router.scaling_factor, router.selection_bias) == (1.5, "mlp.gate.e_score_correction_bias")
    assert (shared.before, shared.width) == (moe.before, 64)
    attention = found.layers[0].attention
    assert (len(attention.rope.frequencies), attention.head_dim) == (16, 64)
    dense = read(config_of("glm4_moe"))
    assert [layer.moe is None for layer in dense.layers] == [True, False, False]
    assert [layer.mlp.width for layer in dense.layers if layer.mlp is not None] == [256, 128, 128]


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("mixtral", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ("olmoe", {"clip_qkv": 8.0}),
        ("olmoe", {"norm_topk_prob": True}),
        ("gpt_oss", {"sliding_window": 8}),
        ("gpt_oss", {"layer_types": ["full_attention"] * 4}),
        ("glm4_moe", {"routed_scaling_factor": 1.0}),
        ("glm4_moe", {"use_qk_norm": False}),
        ("glm4_moe", {"partial_rotary_factor": 0.25}),
        ("glm4_moe", {"first_k_dense_replace": 2}),
    ],
)
def test_a_key_that_matters_changes_the_decoder(name: str, changed: dict[str, Any]) -> None:
    assert fields(read(config_of(name, **changed))) != fields(read(config_of(name)))


def fields(architecture: Architecture) -> dict[str, Any]:
    """All fields, nested ones included."""
    return dataclasses.asdict(architecture)
