"""Everything wrong that a command can be given: one row a fault, its exit code and the code of its one-line report.

Usage errors (2) are the parser's, and have no code. Rows run on a small checkpoint of random weights.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.sources import write_source
from coterie.cli.app import app

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    source = write_source(folder / "source")
    assert CliRunner().invoke(app, ["convert", str(source), str(folder / "model")]).exit_code == 0
    return folder / "model"


def run(*arguments: str, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def check(result: Result, exit_code: int, code: str) -> None:
    """It ended as it should, with one report and nothing of Python's."""
    assert result.exit_code == exit_code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    if code:
        assert result.stderr.count("error [") == 1
        assert f"error [{code}] " in result.stderr, result.stderr
        assert result.stdout == ""


BAD_OPTIONS = {
    "--max-tokens": ["0", "-1", "513", "99999999999999999999", "many:2", "1.5:2", ":2", "nan:2"],
    "--temperature": ["-1", "nan", "inf", "-inf", "1e999", "hot:2", ":2"],
    "--top-k": ["-1", "257", "99999999999999999999", "1.5:2", "some:2"],
    "--top-p": ["0", "-0.1", "1.1", "2", "nan", "inf", "x:2"],
    "--min-p": ["-0.1", "1.1", "nan", "-inf", "x:2"],
    "--repetition-penalty": ["0", "-1", "nan", "inf", "1e7", "x:2"],
    "--presence-penalty": ["nan", "inf", "1e7", "x:2"],
    "--frequency-penalty": ["nan", "-inf", "-1e7", "x:2"],
    "--logit-bias": ["5", "=", "5=", "=5", "a=1", "5=b", "5=nan", "5=inf", "5=1e7", "-1=1", "256=1", "5=1=2", "1.0=1"],
    "--seed": ["-1", "18446744073709551616", "1.5:2", "x:2"],
    "--stop": ["", "x" * 5000],
}
"""Option -> values that are refused; after a colon the exit code, if the parser refuses them."""


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in BAD_OPTIONS.items() for value in values], ids=str
)
def test_an_option_out_of_range(model: Path, command: str, option: str, value: str) -> None:
    value, _, usage = value.partition(":")
    arguments = [command, "--model", str(model), "--max-tokens", "2", f"{option}={value}"]
    result = run(*arguments, *(["x"] if command == "generate" else []), stdin=b"x\n")
    check(result, 2 if usage else 5, "" if usage else f"request_{option[2:].replace('-', '_')}")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["--logprobs", "-1", "--json"], 5, ""),
        (["--logprobs", "101", "--json"], 5, ""),
        (["--logprobs", "2"], 2, ""),
        (["--device", "abacus"], 5, "device"),
        (["--no-such-option"], 2, ""),
        (["--stop", "a"] * 65, 5, "request_stop"),
        (["--logit-bias", "5=1", "--logit-bias", "5=2"], 5, "request_logit_bias"),
        ([f"--logit-bias={token}=-inf" for token in range(256)], 5, "request_logit_bias"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_other_options(model: Path, arguments: list[str], exit_code: int, code: str) -> None:
    check(run("generate", "--model", str(model), *arguments, "x"), exit_code, code)


@pytest.mark.usefixtures("no_gpu")
def test_a_device_that_is_not_there(model: Path) -> None:
    check(run("generate", "--model", str(model), "--device", "cuda", "x"), 4, "backend_unavailable")


@pytest.mark.parametrize(
    ("prompt", "stdin", "code"),
    [
        ("", b"", "request_empty"),
        ("-", b"", "request_empty"),
        ("-", b"\xff\xfe\x00", "prompt_encoding"),
        ("-", b"ok \xc3", "prompt_encoding"),
        ("x" * 512, b"", "request_context"),
        ("-", b"x" * 100_000, "request_context"),
        ("a\udcffb", b"", "request_encoding"),
    ],
)
def test_prompts(model: Path, prompt: str, stdin: bytes, code: str) -> None:
    check(run("generate", "--model", str(model), prompt, stdin=stdin), 5, code)


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"\xff\n", "prompt_encoding"),
        (b'"""\nok\n\xc3\n"""\n', "prompt_encoding"),
        (b"x" * 600, "request_context"),
        (b"/\n", "chat_command"),
        (b"/unknown\n", "chat_command"),
        (b"/HELP\n", "chat_command"),
        (b"/save\n", "chat_command"),
        (b"/load  \n", "chat_command"),
        (b"/load /no/such/file\n", "file_missing"),
        (b"/load /\n", "not_a_file"),
        (b"/load /dev/zero\n", "not_a_file"),
        (b"/load /etc/hostname\n", "history_not_json"),
        (b"/save /no/such/folder/x\n", "write_error"),
        (b"/save /\n", "not_a_file"),
        (b"/save /dev/null\n", "not_a_file"),
        (b"/load a\0b\n", "read_error"),
        (b"/save " + b"a" * 300 + b"\n", "write_error"),
    ],
    ids=str,
)
def test_lines_of_a_chat(model: Path, stdin: bytes, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = {"file_missing": 3, "not_a_file": 3, "write_error": 3, "read_error": 3}
    result = run("chat", "--model", str(model), "--plain", "--max-tokens", "2", stdin=stdin)
    check(result, kinds.get(code, 5), code)


HISTORIES: dict[str, tuple[bytes | None, int, str]] = {
    "empty": (b"", 5, "history_not_json"),
    "not UTF-8": (b'{"version": 1, "messages": ["\xff"]}', 5, "history_not_utf8"),
    "cut short": (b'{"version": 1, "mess', 5, "history_not_json"),
    "a list": (b"[]", 5, "history_kind"),
    "another version": (b'{"version": 2, "messages": []}', 5, "history_kind"),
    "no messages": (b'{"version": 1}', 5, "history_kind"),
    "messages that are a text": (b'{"version": 1, "messages": "hello"}', 5, "history_messages"),
    "a message without a role": (b'{"version": 1, "messages": [{"content": "x"}]}', 5, "history_messages"),
    "a content that is a number": (
        b'{"version": 1, "messages": [{"role": "user", "content": 7}]}',
        5,
        "history_messages",
    ),
    "two systems": (
        b'{"version": 1, "messages": [{"role": "system", "content": "a"}, {"role": "system", "content": "b"}]}',
        5,
        "history_messages",
    ),
    "half a surrogate": (
        b'{"version": 1, "messages": [{"role": "user", "content": "\\ud800"}]}',
        5,
        "history_messages",
    ),
    "the same key twice": (b'{"version": 1, "messages": [], "messages": []}', 5, "history_duplicate_key"),
    "endless nesting": (b"[" * 200_000, 5, "history_nested"),
    "a folder": (None, 3, "not_a_file"),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_a_history_that_lies(model: Path, name: str, tmp_path: Path) -> None:
    content, exit_code, code = HISTORIES[name]
    file = tmp_path / "talk.json"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    check(run("chat", "--model", str(model), "--history", str(file), stdin=b"x\n"), exit_code, code)
    assert content is None or file.read_bytes() == content


def test_a_history_that_cannot_be_read_or_written(model: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    check(run("chat", "--model", str(model), "--history", str(fifo), stdin=b"x\n"), 3, "not_a_file")
    arguments = ("chat", "--model", str(model), "--plain", "--max-tokens", "1")
    result = run(*arguments, "--history", str(tmp_path / "no" / "folder"), stdin=b"x\n")
    assert result.exit_code == 3
    assert "error [write_error]" in result.stderr


FAULTY: dict[str, tuple[Damage, int, str]] = {
    "a template that is none": (lambda f: (f / "chat_template.jinja").write_text("{% if %}"), 3, "template_syntax"),
    "a template that is not UTF-8": (
        lambda f: (f / "chat_template.jinja").write_bytes(b"\xff"),
        3,
        "template_not_utf8",
    ),
    "a template that reaches out": (
        lambda f: (f / "chat_template.jinja").write_text("{{ messages.__class__.__mro__ }}"),
        3,
        "template_unsafe",
    ),
    "a template of gigabytes": (
        lambda f: (f / "chat_template.jinja").write_text("{{ 'x' * 10**10 }}"),
        6,
        "template_budget",
    ),
    "a template that recurses": (
        lambda f: (f / "chat_template.jinja").write_text("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
        6,
        "template_budget",
    ),
    "a template that refuses": (
        lambda f: (f / "chat_template.jinja").write_text("{{ raise_exception('no\x1b[2J') }}"),
        5,
        "template_refused",
    ),
    "a template that fails": (lambda f: (f / "chat_template.jinja").write_text("{{ a.b }}"), 5, "template_failed"),
    "a template that is empty": (lambda f: (f / "chat_template.jinja").write_text(""), 5, "request_empty"),
    "a template that is a folder": (lambda f: (f / "chat_template.jinja").mkdir(), 3, "not_a_file"),
    "a template that is a number": (
        lambda f: (f / "tokenizer_config.json").write_text('{"chat_template": 5}'),
        3,
        "template_type",
    ),
    "templates without a default": (
        lambda f: (f / "tokenizer_config.json").write_text('{"chat_template": [{"name": "x", "template": "y"}]}'),
        4,
        "template_name",
    ),
    "a broken tokenizer_config.json": (lambda f: (f / "tokenizer_config.json").write_text("{"), 3, "config_not_json"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), 3, "tokenizer_missing"),
    "an empty tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(b""), 3, "tokenizer_not_json"),
    "a tokenizer that is not UTF-8": (lambda f: (f / "tokenizer.json").write_bytes(b"\xff"), 3, "tokenizer_not_utf8"),
    "no config": (lambda f: (f / "config.json").unlink(), 3, "config_missing_file"),
    "an empty config": (lambda f: (f / "config.json").write_bytes(b""), 3, "config_not_json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), 3, "shard_missing"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), 3, "file_empty"),
    "weights that are a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        3,
        "not_a_file",
    ),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_checkpoint_with_a_fault(model: Path, name: str, tmp_path: Path) -> None:
    damage, exit_code, code = FAULTY[name]
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    damage(folder)
    result = run("chat", "--model", str(folder), "--max-tokens", "1", stdin=b"hello\n")
    check(result, exit_code, code)
    assert "\x1b[2J" not in result.stderr


@pytest.mark.parametrize("command", [["generate", "x"], ["chat"], ["info"]])
@pytest.mark.parametrize("place", ["/no/such/folder", "no such folder", "", "/etc/hostname", "a" * 5000, "a\0b"])
def test_models_that_are_not_there(command: list[str], place: str) -> None:
    name, *rest = command
    option = [place] if name == "info" else ["--model", place]
    result = run(name, *option, *rest, "--json")
    assert result.exit_code in (3, 5), (result.exit_code, result.stdout)
    assert json.loads(result.stdout)["error"]["code"] not in ("internal", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_model_that_may_not_be_read(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / "config.json").chmod(0)
    check(run("generate", "--model", str(folder), "x"), 3, "read_error")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["nonsense"], 2, ""),
        (["generate"], 2, ""),
        (["generate", "a", "b"], 2, ""),
        (["generate", "--stop"], 2, ""),
        (["chat", "a message"], 2, ""),
        (["chat", "--logprobs", "1"], 2, ""),
        (["info", "a", "b"], 2, ""),
        (["info", "--device", "cpu"], 2, ""),
        (["convert"], 2, ""),
        (["convert", "/no/such/folder", "x"], 5, "repo_id"),
        (["convert", "a/b", "x", "--bits", "7"], 5, "format"),
        (["convert", "a/b", "x", "--group-size", "33"], 5, "format"),
        (["convert", "a/b", "x", "--mode", "q4_k"], 5, "format"),
        (["bench", "nonsense"], 2, ""),
        (["bench", "ops", "--shapes", "nope"], 5, "bench"),
        (["bench", "ops", "--shapes", ""], 5, "bench"),
        (["bench", "ops", "--formats", "5bit"], 5, "bench"),
        (["bench", "ops", "--tokens", "0"], 5, "bench"),
        (["bench", "ops", "--tokens", "1,,2"], 5, "bench"),
        (["bench", "model", "--steps", "0"], 2, ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_other_commands(arguments: list[str], exit_code: int, code: str) -> None:
    check(run(*arguments), exit_code, code)
