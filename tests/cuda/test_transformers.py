"""Models of transformers with packed weights on a GPU: logits beside those on the CPU, texts; the interpreter in CI."""

import importlib
from typing import Any

import numpy as np
import pytest

from models import tiny
from models.parity import CUDA, relative_error

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

FORM = "4 bits g64"
NAMES = ("qwen3_moe", "gemma4", "mixtral", "olmoe", "gpt_oss", "glm4_moe", "deepseek_v2", "deepseek_v3")
"""One of each family."""


def load(name: str, device_map: str | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    importlib.import_module("coterie.integrations.transformers")
    folder = tiny.checkpoint(name, FORM)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", device_map=device_map)


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([ids], device=model.device)).logits[0].double().cpu().numpy()
    return found


@pytest.mark.parametrize("name", ["qwen3_moe"])
def test_modules_run_on_the_kernels_for_gpus(name: str, request: pytest.FixtureRequest) -> None:
    ids = tiny.token_ids(3)
    expected = logits(load(name), ids)
    device = request.getfixturevalue("doors")
    found = logits(load(name).to(device), ids)
    assert 0 < relative_error(found, expected) < CUDA.bound


@pytest.mark.cuda
@pytest.mark.parametrize("name", NAMES)
def test_a_device_map_puts_the_weights_on_the_gpu(name: str) -> None:
    ids, on_gpu = tiny.token_ids(21), load(name, "cuda")
    assert {part.device.type for part in on_gpu.parameters()} == {"cuda"}
    assert relative_error(logits(on_gpu, ids), logits(load(name), ids)) < CUDA.bound
    made = on_gpu.generate(torch.tensor([ids], device="cuda"), max_new_tokens=8, do_sample=False)
    assert made.shape == (1, 29)
