"""Rotary embeddings of every kind against those of transformers, and the decoder's table against complex numbers."""

from typing import Any

import numpy as np
import pytest

from coterie.checkpoint import Fields
from coterie.errors import ConfigError, UnsupportedError
from coterie.models.rope import default_rope, rotation_table, yarn_magnitude
from coterie.models.rope_config import rope_of

EPS = float(np.finfo(np.float32).eps)
YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "rope_theta": 150_000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512, "rope_theta": 5e5,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("linear", 64, {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    ("half linear", 64, {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    ("llama3", 64, LLAMA3),
    ("llama3 quarter", 128, {**LLAMA3, "partial_rotary_factor": 0.25}),
    ("yarn", 64, YARN),
    ("yarn exact", 64, {**YARN, "truncate": False}),
    ("yarn half", 64, {**YARN, "truncate": False, "partial_rotary_factor": 0.5}),
    ("yarn narrow", 128, {**YARN, "beta_fast": 4, "beta_slow": 2.0, "truncate": False}),
    ("yarn short", 64, {**YARN, "original_max_position_embeddings": 16}),
    ("yarn own factor", 64, {**YARN, "attention_factor": 1.25}),
    ("yarn deepseek", 64, {**YARN, "mscale": 0.707, "mscale_all_dim": 1.0}),
    ("yarn one mscale", 64, {**YARN, "mscale": 0.707}),
    ("yarn no factor", 64, {**YARN, "factor": 1.0}),
    ("proportional", 64, {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}),
    ("proportional factor", 64, {"rope_type": "proportional", "rope_theta": 1e6, "factor": 8.0}),
]


@pytest.mark.parametrize(("dims", "parameters"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_frequencies_are_those_of_transformers(dims: int, parameters: dict[str, Any]) -> None:
    from transformers import Glm4MoeConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = Glm4MoeConfig(head_dim=dims, rope_parameters={"partial_rotary_factor": 1.0, **parameters})
    expected, amplitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
    read = rope_of(Fields({"rope_parameters": parameters}), dims, kinds=[parameters["rope_type"]], partial=True)
    # transformers computes in f32: where the ramp ends, 1 - ramp is off by EPS and counts `factor` times.
    rtol = (8 + parameters.get("factor", 1.0)) * EPS
    np.testing.assert_allclose(read.frequencies, expected.numpy(), rtol=rtol, atol=0)
    assert read.amplitude == pytest.approx(amplitude, rel=1e-12)


def test_truncating_yarn_is_another_embedding() -> None:
    ropes = [rope_of(Fields({"rope_parameters": {**YARN, "truncate": value}}), 64) for value in (False, True)]
    assert ropes[0] != ropes[1]
    assert rope_of(Fields({"rope_parameters": YARN}), 64) == ropes[1]


def test_the_magnitude_of_gpt_oss() -> None:
    assert yarn_magnitude(32.0) == pytest.approx(1.3465735902799727, rel=1e-15)


def test_a_share_of_the_head_may_stand_outside_of_the_rope_object() -> None:
    outside = Fields({"rope_theta": 1e4, "rope_scaling": None, "partial_rotary_factor": 0.5})
    assert rope_of(outside, 64, partial=True) == default_rope(1e4, 32)
    both = {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor": 0.25}
    with pytest.raises(ConfigError):
        rope_of(Fields(both), 64, partial=True)
    with pytest.raises(ConfigError):
        rope_of(Fields({"rope_theta": 1e4, "partial_rotary_factor": 0.1}), 32, partial=True)
    with pytest.raises(UnsupportedError):
        rope_of(Fields({"rope_theta": 1e4, "partial_rotary_factor": 0.5}), 64)


def test_the_amplitude_is_in_the_table() -> None:
    frequencies = np.array(default_rope(1e4, 16).frequencies, np.float32)
    plain, larger = rotation_table(frequencies, np.arange(4)), rotation_table(frequencies, np.arange(4), 1.5)
    for one, other in zip(plain, larger, strict=True):
        np.testing.assert_allclose(other, 1.5 * one, rtol=2 * EPS)
