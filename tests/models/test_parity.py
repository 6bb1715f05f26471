"""Logits of tiny random checkpoints against transformers and mlx-lm, both in f32, on the same stored weights."""

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from coterie.models.families import FAMILIES
from models import tiny
from models.parity import (
    COMPARED,
    MODES,
    PAGE_MODES,
    PLAIN,
    WAYS,
    decoder,
    logits,
    mlx_logits,
    references_for,
    relative_error,
    transformers_logits,
    worst_error,
)

BOUND = PLAIN.bound
CASES = [(name, form, mode) for name in tiny.MODELS for form in tiny.FORMATS for mode in MODES]
DIFFERING = [(name, form) for name in tiny.MODELS for form in ("plain", "mxfp4") if tiny.mlx_differs(name, form)]
PAGE = Path(__file__).parents[2] / "docs" / "parity.md"


@pytest.mark.parametrize(("name", "form", "mode"), CASES)
def test_logits_are_those_of_transformers(name: str, form: str, mode: str) -> None:
    assert worst_error(name, form, "transformers", MODES[mode]) < MODES[mode].bound


@pytest.mark.parametrize(("name", "form", "mode"), [case for case in CASES if not tiny.mlx_differs(case[0], case[1])])
def test_logits_are_those_of_mlx_lm(name: str, form: str, mode: str) -> None:
    assert worst_error(name, form, "mlx-lm", MODES[mode]) < MODES[mode].bound


@pytest.mark.parametrize(("name", "form"), DIFFERING)
def test_where_mlx_lm_is_not_compared_it_is_far_from_the_original(name: str, form: str) -> None:
    assert relative_error(mlx_logits(name, form), transformers_logits(name, form)) > 1e-4


@functools.cache
def exact_logits(name: str) -> np.ndarray:
    return logits(decoder(tiny.checkpoint(name, "4 bits g64"), PLAIN), "chunks and steps in turn")


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_float64_on_dequantised_weights_agrees_however_the_tokens_come(name: str, way: str) -> None:
    exact = exact_logits(name)
    assert relative_error(exact, transformers_logits(name, "4 bits g64")) < BOUND
    assert relative_error(logits(decoder(tiny.checkpoint(name, "4 bits g64")), way), exact) < BOUND


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "gemma4_dense", "gpt_oss", "gpt_oss_blocks", "glm4_moe"])
@pytest.mark.parametrize("form", ["plain", "4 bits g64"])
def test_a_checkpoint_in_bfloat16(name: str, form: str) -> None:
    found = logits(decoder(tiny.checkpoint(name, form, "bfloat16")), "prompt and single steps")
    assert relative_error(found, transformers_logits(name, form, "bfloat16")) < BOUND


@pytest.mark.parametrize("name", tiny.MODELS)
def test_the_config_of_transformers_5_describes_the_same_decoder(name: str, tmp_path: Path) -> None:
    published = tiny.checkpoint(name, "4 bits g64")
    new = tmp_path / "new"
    shutil.copytree(published, new)
    config = json.loads((published / "config.json").read_text())
    written = json.loads(tiny.transformers_config(tiny.MODELS[name]).to_json_string())
    (new / "config.json").write_text(json.dumps({**written, "quantization": config["quantization"]}))
    assert decoder(new).architecture == decoder(published).architecture
    assert np.array_equal(logits(decoder(new), "whole"), logits(decoder(published), "whole"))


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4"])
def test_the_same_tokens_give_the_same_bits(name: str) -> None:
    made = decoder(tiny.checkpoint(name, "4 bits g64"))
    first = logits(made, "chunks and steps in turn")
    logits(made, "whole")
    assert np.array_equal(first, logits(made, "chunks and steps in turn"))


def test_an_option_makes_gpt_oss_what_mlx_lm_computes(tmp_path: Path) -> None:
    changed = tmp_path / "truncated"
    shutil.copytree(tiny.checkpoint("gpt_oss", "4 bits g64"), changed)
    config = json.loads((changed / "config.json").read_text())
    config["rope_scaling"]["truncate"] = True
    (changed / "config.json").write_text(json.dumps(config))
    assert relative_error(logits(decoder(changed), "whole"), mlx_logits("gpt_oss", "4 bits g64")) < BOUND


def test_the_page_has_a_figure_for_every_family_and_format() -> None:
    names = sorted({family.name for family in FAMILIES.values()})
    tables = re.findall(r"^## (.*) against (.*)\n((?:.*\n)*?)(?=\n## )", PAGE.read_text("utf-8"), re.MULTILINE)
    shown = {(mode, reference): text for mode, reference, text in tables}
    wanted = [(mode, name) for mode, how in PAGE_MODES.items() if how.backend != "cuda" for name in references_for(how)]
    assert set(wanted) <= shown.keys()
    for (mode, _), text in shown.items():
        rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
        assert [name for name, _ in rows] == names
        for _, figures in rows:
            values = [figure.strip() for figure in figures.split("|")]
            assert len(values) == len(tiny.FORMATS)
            assert all(value == "-" or 0 < float(value) < PAGE_MODES[mode].bound for value in values)
    assert any(name in PAGE.read_text("utf-8") for name in COMPARED)
