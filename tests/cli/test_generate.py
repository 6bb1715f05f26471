"""`coterie generate` with a model that is not there: what goes where, and how every ending looks."""

import io
import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

import coterie
from cli.fakes import FakeModel
from coterie.cli.app import app
from coterie.errors import CapacityError, CheckpointError, NumericError, RequestError, UnsupportedError

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `coterie generate` with the given fake model."""

    def invoke(model: FakeModel, *arguments: str, stdin: bytes | None = None) -> Result:
        monkeypatch.setattr(coterie, "load", model.load, raising=False)
        return CliRunner().invoke(app, ["generate", *arguments], input=stdin)

    return invoke


def test_text_goes_to_stdout_and_nothing_else(run: Run) -> None:
    result = run(FakeModel("a", "b\n", "é"), "prompt")
    assert result.exit_code == 0
    assert result.stdout == "ab\né"
    assert "3 prompt tokens (6/s) · first token after 0.60 s · 3 tokens (1/s) · length" in result.stderr


def test_every_option_reaches_the_model(run: Run) -> None:
    model = FakeModel("a")
    options = (
        "--model m --max-tokens 5 --temperature 0.5 --top-k 7 --top-p 0.9 --seed 1 --device cpu --min-p 0.1 --json"
    )
    options += " --repetition-penalty 1.1 --presence-penalty -0.2 --frequency-penalty 0.3 --logprobs 2"
    options += " --logit-bias 5=-inf --logit-bias 6=1.5"
    result = run(model, *options.split(), "--stop", "x y", "--stop", "\n", "prompt")
    assert result.exit_code == 0
    assert model.loaded == ("m", "cpu")
    assert model.asked == {
        "prompt": "prompt",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": -0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {5: float("-inf"), 6: 1.5},
        "logprobs": 2,
        "seed": 1,
        "stop": ("x y", "\n"),
    }


def test_by_default_it_samples_and_the_same_command_gives_the_same_text(run: Run) -> None:
    model = FakeModel("a")
    run(model, "prompt")
    assert model.loaded == (None, "auto")
    assert model.asked == {
        "prompt": "prompt",
        "max_tokens": 256,
        "temperature": 0.9,
        "top_k": 0,
        "top_p": 0.95,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": None,
        "logprobs": None,
        "seed": 0,
        "stop": (),
    }


def test_a_dash_reads_standard_input(run: Run) -> None:
    model = FakeModel("a")
    assert run(model, "-", stdin="zwei\nZeilen ü".encode()).exit_code == 0
    assert model.asked["prompt"] == "zwei\nZeilen ü"


def test_standard_input_that_is_not_utf8_is_refused(run: Run) -> None:
    result = run(FakeModel("a"), "-", stdin=b"ab\xff")
    assert result.exit_code == 5
    assert "byte 2 of 3 is 0xff" in result.stderr


def test_json_is_one_object_and_stdout_holds_nothing_else(run: Run) -> None:
    result = run(FakeModel("a", "\u202eb"), "--json", "prompt")
    record = json.loads(result.stdout)
    assert record["text"] == "a\u202eb"
    assert record["token_ids"] == [0, 1]
    assert record["finish_reason"] == "length"
    assert record["n_prompt_tokens"] == 3
    assert record["timings"].keys() == {"load", "prefill", "first_token", "decode"}
    assert result.stdout.isascii()


def test_an_empty_completion_is_no_error(run: Run) -> None:
    result = run(FakeModel(), "prompt")
    assert (result.exit_code, result.stdout) == (0, "")


def test_ctrl_c_keeps_the_text_and_exits_with_130(run: Run) -> None:
    result = run(FakeModel("a", "b", failure=KeyboardInterrupt()), "prompt")
    assert (result.exit_code, result.stdout) == (130, "ab")
    assert "interrupted" in result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_with_json_prints_what_was_made(run: Run) -> None:
    result = run(FakeModel("a", "b", failure=KeyboardInterrupt()), "--json", "prompt")
    assert result.exit_code == 130
    record = json.loads(result.stdout)
    assert (record["text"], record["finish_reason"]) == ("ab", "interrupted")


def test_ctrl_c_while_loading_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(coterie, "load", load, raising=False)
    result = CliRunner().invoke(app, ["generate", "prompt"])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")
    result = CliRunner().invoke(app, ["generate", "--json", "prompt"])
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (130, "interrupted")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointError("m", code="hole"), 3),
        (UnsupportedError("m"), 4),
        (RequestError("m"), 5),
        (NumericError("m"), 6),
        (CapacityError("m"), 6),
        (MemoryError(), 6),
        (ZeroDivisionError("m"), 1),
    ],
)
def test_an_error_in_the_middle_keeps_the_text_and_has_its_exit_code(run: Run, error: Exception, code: int) -> None:
    result = run(FakeModel("a", failure=error), "prompt")
    assert (result.exit_code, result.stdout) == (code, "a")
    assert result.stderr.count("error [") == 1
    assert "Traceback" not in result.stderr


def test_errors_as_json(run: Run) -> None:
    result = run(FakeModel(failure=CheckpointError("tensor 'x\x1b[2J' is short", code="hole")), "--json", "prompt")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {"error": {"code": "hole", "message": "tensor 'x\\x1b[2J' is short"}}


def test_debug_shows_the_traceback(run: Run) -> None:
    result = run(FakeModel(failure=CheckpointError("m")), "--debug", "prompt")
    assert result.exit_code == 3
    assert "Traceback" in result.stderr


def test_usage_errors_exit_with_2(run: Run) -> None:
    assert run(FakeModel("a")).exit_code == 2
    assert run(FakeModel("a"), "--max-tokens", "many", "prompt").exit_code == 2


def test_on_a_terminal_generated_text_cannot_steer_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.cli import console

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(console.sys, "stdout", terminal)
    console.write_text("a\x1b[2J\r\u202e\n\tb")
    assert terminal.getvalue() == "a\\x1b[2J\\r\\u202e\n\tb"
