"""The commands one after the other on a small checkpoint: convert it, look at it, let it write."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import coterie
from cli.sources import write_source
from coterie.cli.app import app


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("end_to_end")
    source = write_source(folder / "source")
    assert CliRunner().invoke(app, ["convert", str(source), str(folder / "model")]).exit_code == 0
    return folder / "model"


def generate(model: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["generate", "--model", str(model), "--max-tokens", "12", *arguments])


def test_the_command_writes_what_the_library_writes(model: Path) -> None:
    expected = coterie.load(model).generate("def f(", max_tokens=12, temperature=0.9, top_p=0.95, seed=0)
    result = generate(model, "def f(")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == expected.text
    record = json.loads(generate(model, "def f(", "--json").stdout)
    assert record["text"] == expected.text
    assert tuple(record["token_ids"]) == expected.token_ids
    assert record["finish_reason"] == expected.finish_reason
    assert record["n_prompt_tokens"] == 6


def test_the_same_command_gives_the_same_text_and_another_seed_another(model: Path) -> None:
    first, second, other = (generate(model, "--seed", seed, "x") for seed in ("7", "7", "8"))
    assert first.exit_code == 0
    assert first.stdout == second.stdout != other.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([""], "request_empty"),
        (["x" * 600], "request_context"),
        (["--temperature", "-1", "x"], "request_temperature"),
        (["--top-p", "2", "x"], "request_top_p"),
        (["--stop", "", "x"], "request_stop"),
        (["--max-tokens", "0", "x"], "request_max_tokens"),
    ],
)
def test_a_request_that_cannot_be_met_names_its_field(model: Path, arguments: list[str], code: str) -> None:
    result = generate(model, "--json", *arguments)
    assert result.exit_code == 5
    assert json.loads(result.stdout)["error"]["code"] == code


def test_a_text_on_mlx_arrays_is_that_of_the_cpu(model: Path) -> None:
    pytest.importorskip("mlx.core")
    made = [generate(model, "--device", device, "--temperature", "0", "def f") for device in ("mlx", "cpu")]
    assert made[0].exit_code == 0
    assert made[0].stdout == made[1].stdout


@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_is_not_there_is_said(model: Path) -> None:
    assert generate(model, "--device", "cuda", "x").exit_code == 4
    assert generate(model, "--device", "abacus", "x").exit_code == 5
