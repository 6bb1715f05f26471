"""`coterie convert`: overrides as they are written on the command line, and real conversions of a small checkpoint."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.sources import write_source
from coterie.checkpoint import LayerFormat, open_checkpoint
from coterie.cli.app import app
from coterie.cli.convert import layer_format
from coterie.errors import RequestError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("convert") / "source")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (".*down_proj=6", LayerFormat(".*down_proj", 6)),
        (".*down_proj=6:32", LayerFormat(".*down_proj", 6, 32)),
        ("a=8:32:mxfp8", LayerFormat("a", 8, 32, "mxfp8")),
        ("a=::mxfp4", LayerFormat("a", None, None, "mxfp4")),
        ("(?!x=y)a=8", LayerFormat("(?!x=y)a", 8)),
        ("(?:a|b)=8", LayerFormat("(?:a|b)", 8)),
        ("lm_head=none", LayerFormat("lm_head", quantized=False)),
    ],
)
def test_an_override_is_read(text: str, rule: LayerFormat) -> None:
    assert layer_format(text) == rule


@pytest.mark.parametrize("text", ["", "a", "=8", "a=", "a=x", "a=-4", "a=4.0", "a=4:64:affine:1", "a=٣", "(=4"])
def test_an_override_that_says_nothing_clear_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--override"):
        layer_format(text)


def test_a_conversion_is_reported_and_can_be_opened(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    result = run(source, target, "--bits", "4", "--group-size", "32", "--override", ".*down_proj=8:64", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["n_quantized"] > 0
    assert 4.0 < report["bits_per_weight"] < 8.0
    with open_checkpoint(target) as checkpoint:
        experts = "model.layers.0.mlp.switch_mlp"
        assert checkpoint.packed(f"{experts}.gate_proj", 128).format.bits == 4
        assert checkpoint.packed(f"{experts}.down_proj", 64).format.bits == 8


def test_the_report_as_text_goes_to_stderr(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "target", "--group-size", "128")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "matrices quantised" in result.stderr
    assert "matrices not quantised: 2, 64 inputs are not divisible by groups of 128" in result.stderr
    assert "tensors left out because nothing uses them: 1" in result.stderr


def test_mode_none_keeps_the_weights(source: Path, tmp_path: Path) -> None:
    result = run(source, tmp_path / "target", "--mode", "none", "--dtype", "bfloat16", "--json")
    assert json.loads(result.stdout)["n_quantized"] == 0
    assert run(source, tmp_path / "other", "--mode", "none", "--bits", "4").exit_code == 5


def test_an_existing_target_is_kept_unless_forced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    assert run(source, target).exit_code == 0
    before = (target / "config.json").read_bytes()
    refused = run(source, target, "--bits", "8", "--json")
    assert refused.exit_code == 5
    assert json.loads(refused.stdout).keys() == {"error"}
    assert (target / "config.json").read_bytes() == before
    assert run(source, target, "--bits", "8", "--force").exit_code == 0
    assert (target / "config.json").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--bits", "7"], 5),
        (["--mode", "q4_k"], 5),
        (["--dtype", "int8"], 5),
        (["--override", "nonsense"], 5),
        (["--bits", "four"], 2),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    source: Path, tmp_path: Path, arguments: list[str], code: int
) -> None:
    result = run(source, tmp_path / "target", *arguments)
    assert result.exit_code == code
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_is_quantised_already_is_unsupported(source: Path, tmp_path: Path) -> None:
    assert run(source, tmp_path / "once").exit_code == 0
    assert run(tmp_path / "once", tmp_path / "twice").exit_code == 4
