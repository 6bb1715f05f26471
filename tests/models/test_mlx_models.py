"""Models on MLX arrays: logits beside those of transformers, texts, batches and prompt caches beside the CPU's."""

import functools
from pathlib import Path

import pytest

from coterie.runtime import Model, load
from models import tiny
from models.parity import COMPARED, IDS, MLX, decoder, logits, relative_error, transformers_logits

pytest.importorskip("mlx.core")

NAMES = ("qwen3_moe", "gemma4", "gpt_oss", "deepseek_v3")


CASES = [(name, "4 bits g64") for name in tiny.MODELS]
CASES += [(name, form) for name in NAMES for form in ("plain", "mxfp4", "mixed")]


@functools.cache
def model(folder: Path, device: str = "mlx") -> Model:
    return load(folder, device=device)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_logits_are_those_of_transformers(name: str, form: str) -> None:
    found = logits(decoder(tiny.checkpoint(name, form), MLX), "whole")
    assert relative_error(found, transformers_logits(name, form)) < MLX.bound


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", COMPARED[1:])
def test_tokens_may_come_in_any_portions(name: str, way: str) -> None:
    """Windows wrap around, and stores grow."""
    found = logits(decoder(tiny.checkpoint(name, "4 bits g64"), MLX), way)
    assert relative_error(found, transformers_logits(name, "4 bits g64")) < MLX.bound


def test_weights_in_bfloat16() -> None:
    found = logits(decoder(tiny.checkpoint("qwen3_moe", "plain", "bfloat16"), MLX), "whole")
    assert relative_error(found, transformers_logits("qwen3_moe", "plain", "bfloat16")) < MLX.bound


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_is_that_of_the_cpu(name: str) -> None:
    folder = tiny.checkpoint(name, "4 bits g64")
    found, expected = (
        model(folder, device).generate("def path", max_tokens=12, temperature=0) for device in ("mlx", "cpu")
    )
    assert found.token_ids == expected.token_ids


def test_a_batch_gives_the_texts_of_its_prompts_alone() -> None:
    made, prompts = model(tiny.checkpoint("qwen3_moe", "4 bits g64")), ["def path", "import os and more", "x"]
    together = made.generate_batch(prompts, max_tokens=8, temperature=0)
    assert [text.token_ids for text in together] == [
        made.generate(prompt, max_tokens=8, temperature=0).token_ids for prompt in prompts
    ]


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "deepseek_v3"])
def test_a_prompt_cache_goes_through_a_file_and_on_to_the_other_device(name: str, tmp_path: Path) -> None:
    folder = tiny.checkpoint(name, "4 bits g64")
    made, other = model(folder), model(folder, "cpu")
    expected = made.generate(IDS, max_tokens=6, temperature=0).token_ids
    cache = made.prompt_cache()
    made.generate(IDS[:-4], max_tokens=1, temperature=0, cache=cache)
    cache.save(tmp_path / "cache")
    for device in (made, other):
        found = device.generate(IDS, max_tokens=6, temperature=0, cache=device.prompt_cache(tmp_path / "cache"))
        assert found.token_ids == expected
        assert found.n_cached_tokens == len(IDS) - 4


def test_memory_counts_no_mapped_weights() -> None:
    made = model(tiny.checkpoint("qwen3_moe", "4 bits g64"))
    assert made.memory().weights_resident in (0, None)
    assert made.fingerprint == model(tiny.checkpoint("qwen3_moe", "4 bits g64"), "cpu").fingerprint
