"""Healthy models of every family, converted by mlx-lm and by this library: nothing is found that is not meant."""

from pathlib import Path

import pytest

from coterie.checkpoint import convert
from coterie.doctor import Level, examine
from coterie.models.families import family_of
from models import tiny

KNOWN = {"router_bits", "rope_setting_dropped"}
"""Where mlx-lm has no rule of its own for the router it gets the bits of the rest; some families' settings are such
that readers drop them."""


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("format_name", ["4 bits g64", "mxfp4"])
def test_by_mlx_lm(name: str, format_name: str) -> None:
    report = examine(tiny.checkpoint(name, format_name))
    assert report.loads
    assert report.skipped == {}
    assert {finding.code for finding in report.findings if finding.level is not Level.NOTE} <= KNOWN


@pytest.mark.parametrize("name", tiny.MODELS)
def test_by_this_library(name: str, tmp_path: Path) -> None:
    convert(
        tiny.source(name), tmp_path / "made", lambda config: family_of(config).name_map(config), bits=4, group_size=64
    )
    report = examine(tmp_path / "made")
    assert report.loads
    assert report.skipped == {}
    assert {finding.code for finding in report.findings if finding.level is not Level.NOTE} <= KNOWN
    assert "tensors_unaligned" not in {finding.code for finding in report.findings}


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4"])
def test_an_original_is_to_be_converted(name: str) -> None:
    report = examine(tiny.source(name))
    errors = [finding for finding in report.findings if finding.level is Level.ERROR]
    assert [finding.code for finding in errors] == ["weights_unconverted"]
    assert "coterie convert" in errors[0].advice
