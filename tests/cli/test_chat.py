"""`coterie chat` through a pipe, with a model that is not there: messages, commands, histories, every ending."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import coterie
from cli.fakes import FakeChatModel
from coterie.cli.app import app
from coterie.errors import CapacityError, NumericError, RequestError

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `coterie chat` with the given model, arguments and standard input."""

    def invoke(model: FakeChatModel, stdin: str | bytes, *arguments: str) -> Result:
        monkeypatch.setattr(coterie, "load", model.load, raising=False)
        return CliRunner().invoke(app, ["chat", *arguments], input=stdin)

    return invoke


def test_each_line_is_a_message_and_the_replies_are_remembered(run: Run) -> None:
    model = FakeChatModel("re", "ply")
    result = run(model, "one\n\n  \ntwo")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "reply\nreply\n"
    assert model.prompts == ["<u>one<a>", "<u>one<a>reply<u>two<a>"]
    assert result.stderr.count("prompt tokens") == 2


def test_blocks_and_lines_that_begin_with_a_slash(run: Run) -> None:
    model = FakeChatModel("r")
    result = run(model, '"""\n/one\n\n  two\n"""\n//three\n"""four"""\n"""\nfive\n/quit')
    assert result.exit_code == 0, result.stderr
    said = model.prompts[-1].removesuffix("<a>").split("<u>")[1:]
    assert [text.removesuffix("<a>r") for text in said] == ["/one\n\n  two", "/three", '"""four"""', "five\n/quit"]


def test_commands(run: Run) -> None:
    model = FakeChatModel("r")
    result = run(model, "a\n/reset\nb\n/system be kind\nc\n/reset\nd\n/system\ne\n/help\n/quit\nf\n", "--system", "s")
    assert result.exit_code == 0, result.stderr
    assert model.prompts == [
        "<s>s<u>a<a>",
        "<s>s<u>b<a>",
        "<s>be kind<u>b<a>r<u>c<a>",
        "<s>be kind<u>d<a>",
        "<u>d<a>r<u>e<a>",
    ]
    assert "/save FILE" in result.stderr


def test_every_option_reaches_the_model(run: Run) -> None:
    model = FakeChatModel("r")
    options = "--model m --device cpu --max-tokens 5 --temperature 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --seed 4"
    options += " --repetition-penalty 1.1 --presence-penalty 1 --frequency-penalty 2 --logit-bias 5=1 --stop x"
    assert run(model, "a", *options.split()).exit_code == 0
    assert model.loaded == ("m", "cpu")
    assert model.asked.pop("cache", None) is None
    assert model.asked == {
        "prompt": "<u>a<a>",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 1.0,
        "frequency_penalty": 2.0,
        "logit_bias": {5: 1.0},
        "seed": 4,
        "stop": ("x",),
    }


def test_a_reply_may_take_the_whole_context_by_default(run: Run) -> None:
    model = FakeChatModel("r")
    run(model, "a")
    assert model.asked["max_tokens"] == 400


@pytest.mark.parametrize(("template", "arguments"), [(False, ()), (True, ("--plain",))])
def test_without_a_template_texts_are_continued(run: Run, template: bool, arguments: tuple[str, ...]) -> None:
    model = FakeChatModel("\n    r", template=template)
    result = run(model, "def f():\n# more\n", "--system", "# code", *arguments)
    assert result.exit_code == 0, result.stderr
    assert model.prompts == ["# code\ndef f():", "# code\ndef f():\n    r\n# more"]
    assert model.asked["max_tokens"] == 128
    assert ("has no chat template" in result.stderr) is not template


def test_json_is_one_line_a_reply(run: Run) -> None:
    result = run(FakeChatModel("a", "\u202eb"), "one\ntwo\n", "--json")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["text"] for record in records] == ["a\u202eb"] * 2
    assert records[0].keys() >= {"token_ids", "finish_reason", "n_prompt_tokens", "timings"}
    assert result.stdout.isascii()


class Thinker(FakeChatModel):
    """Thinks before it answers."""

    marks = ("<think>", "</think>")


def test_thoughts_go_to_standard_error_and_the_answer_to_standard_output(run: Run, tmp_path: Path) -> None:
    file, pieces = tmp_path / "talk.json", ("<think>", "\nhm", "...</thi", "nk>\n\nyes", "!")
    result = run(Thinker(*pieces), "one\n", "--history", str(file))
    assert result.stdout == "yes!\n"
    assert "hm...\n\n" in result.stderr
    answer = json.loads(file.read_text())["messages"][1]
    assert answer == {"role": "assistant", "content": "yes!", "reasoning_content": "hm..."}
    result = run(Thinker(*pieces), "one\n", "--json")
    record = json.loads(result.stdout)
    assert (record["text"], record["thoughts"]) == ("yes!", "hm...")
    assert "hm" not in result.stderr
    assert run(Thinker(*pieces), "one\n", "--plain").stdout == "".join(pieces) + "\n"


def test_a_conversation_is_saved_and_gone_on_with(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    assert run(FakeChatModel("é"), f"one\n/save {file}\n", "--system", "s").exit_code == 0
    assert json.loads(file.read_text("utf-8")) == {
        "version": 1,
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "é"},
        ],
    }
    model = FakeChatModel("r")
    assert run(model, f"lost\n/load {file}\ntwo\n/save {file}").exit_code == 0
    assert model.prompts[-1] == "<s>s<u>one<a>é<u>two<a>"
    assert len(json.loads(file.read_text("utf-8"))["messages"]) == 5


def test_a_history_is_kept_after_every_reply(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    assert run(FakeChatModel("r"), "one\n", "--history", str(file)).exit_code == 0
    model = FakeChatModel("r")
    assert run(model, "two\n/nonsense\n", "--history", str(file), "--system", "new").exit_code == 5
    assert model.prompts == ["<s>new<u>one<a>r<u>two<a>"]
    assert [message["content"] for message in json.loads(file.read_text())["messages"]] == [
        "new",
        "one",
        "r",
        "two",
        "r",
    ]


def test_the_oldest_exchanges_are_left_out_when_the_context_is_full(run: Run, tmp_path: Path) -> None:
    model, file = FakeChatModel("r" * 40), tmp_path / "talk.json"
    lines = [f"{index}" * 40 for index in range(6)]
    result = run(model, "\n".join(lines), "--system", "keep", "--history", str(file))
    assert result.exit_code == 0, result.stderr
    assert all(len(prompt) < 400 - 50 for prompt in model.prompts)
    assert all(prompt.startswith("<s>keep<u>") for prompt in model.prompts)
    assert model.prompts[-1].endswith(f"{lines[5]}<a>")
    assert lines[0] not in model.prompts[-1]
    assert "no longer sees the oldest 4 messages" in result.stderr
    assert len(json.loads(file.read_text())["messages"]) == 13


def test_a_message_longer_than_the_context_is_refused(run: Run) -> None:
    result = run(FakeChatModel("r"), "x" * 401)
    assert result.exit_code == 5
    assert "request_context" in result.stderr


def test_ctrl_c_keeps_what_came_and_ends_a_pipe_with_130(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    result = run(FakeChatModel("a", "b", failure=KeyboardInterrupt()), "one\ntwo\n", "--history", str(file))
    assert (result.exit_code, result.stdout) == (130, "ab\n")
    assert "interrupted" in result.stderr
    assert [message["content"] for message in json.loads(file.read_text())["messages"]] == ["one", "ab"]


@pytest.mark.parametrize(("error", "code"), [(NumericError("m"), 6), (CapacityError("m"), 6), (RequestError("m"), 5)])
def test_in_a_pipe_an_error_ends_it(run: Run, error: Exception, code: int) -> None:
    result = run(FakeChatModel("a", failure=error), "one\ntwo\n")
    assert (result.exit_code, result.stdout) == (code, "a")
    assert result.stderr.count("error [") == 1


def test_an_error_as_json(run: Run) -> None:
    result = run(FakeChatModel("a"), "/nope\n", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (5, "chat_command")


def test_nothing_said_is_no_error(run: Run) -> None:
    for stdin in ("", "\n\n", '"""\n"""\n', '"""'):
        model = FakeChatModel("a")
        result = run(model, stdin)
        assert (result.exit_code, result.stdout, model.prompts) == (0, "", [])


def test_an_unknown_command_cannot_steer_the_terminal(run: Run) -> None:
    result = run(FakeChatModel("a"), "/\x1b[2Jnope\n")
    assert result.exit_code == 5
    assert "\x1b[2J" not in result.stderr


def test_a_file_that_is_something_else_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    arguments: Any
    for arguments in ((f"one\n/save {file}\n",), ("one\n", "--history", str(file))):
        result = run(FakeChatModel("a"), *arguments)
        assert result.exit_code == 5
        assert "history_" in result.stderr
        assert file.read_text() == "years of work"
