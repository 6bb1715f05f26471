"""Whole models whose expert layers, routers and activations run on the kernels, beside the same models on the CPU."""

from typing import Any

import numpy as np
import pytest

from coterie.runtime import load
from models import tiny

pytest.importorskip("mlx.core")

BOUND = 1e-5
EXPECTED = {
    "gpt_oss": {"route", "experts_gate_up", "experts_down"},
    "gemma4": {"route", "experts_gate_up", "experts_down", "glu"},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_logits_are_those_of_the_cpu(name: str, engine: str, request: pytest.FixtureRequest) -> None:
    folder = tiny.checkpoint(name, "mxfp4" if name == "gpt_oss" else "4 bits g64")
    ids = tiny.token_ids()[:5]
    found, expected = load(folder, device="mlx").logits(ids), load(folder, precision="exact").logits(ids)
    assert np.linalg.norm(found - expected) < BOUND * np.linalg.norm(expected)
    if engine == "emulated":
        emulator: Any = request.getfixturevalue("emulator")
        assert set(emulator.launches) == EXPECTED[name]
