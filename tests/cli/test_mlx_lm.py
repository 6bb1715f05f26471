"""`coterie mlx-lm`: mlx-lm's commands and programs that use it, patched."""

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coterie.cli.app import app
from models import tiny

PROGRAM = """
import sys
import mlx_lm
model, tokenizer = mlx_lm.load(sys.argv[1])
print(sys.argv[2:], type(model.layers[0].mlp.switch_mlp).__name__, type(model.lm_head).__name__)
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["mlx-lm", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny.checkpoint("qwen3_moe", "4 bits g32")


def test_a_program_runs_as_it_is_with_its_models_patched(folder: Path, tmp_path: Path) -> None:
    program, before = tmp_path / "program.py", sys.argv
    program.write_text(PROGRAM)
    result = run(program, folder, "--all-logits", "-h")
    assert result.exit_code == 0, result.output
    assert "['--all-logits', '-h'] CoterieSwitchGLU CoterieQuantizedLinear" in result.output
    assert "coterie computes 2 layers of experts and 19 other" in result.stderr
    only_experts = run("--no-linears", program, folder)
    assert "CoterieSwitchGLU QuantizedLinear" in only_experts.output
    assert sys.argv is before


def test_a_command_of_mlx_lm_runs(folder: Path) -> None:
    options = ("--prompt", "def", "--max-tokens", 3, "--ignore-chat-template")
    result = run("generate", "--model", folder, *options)
    assert result.exit_code == 0, result.output
    assert "Generation: 3 tokens" in result.stdout
    assert "coterie computes" in result.stderr


@pytest.mark.parametrize(
    ("program", "words"), [("nonsense", "no command 'nonsense'"), ("gone.py", "no file 'gone.py'")]
)
def test_what_is_not_there_is_refused(program: str, words: str) -> None:
    result = run(program)
    assert result.exit_code == 5
    assert words in result.stderr


def test_a_program_tells_its_own_errors(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("print(1 / 0)")
    result = run(program)
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "unforeseen" not in result.stderr
    program.write_text("raise SystemExit(9)")
    assert run(program).exit_code == 9


def test_without_mlx_lm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    result = run("generate")
    assert result.exit_code == 4
    assert "pip install 'mlx-lm" in result.stderr
