"""`coterie generate --prompts` and `--prompt-cache`, with the bundled model: what goes where, and what is refused."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import coterie
from coterie.cli import generate_many
from coterie.cli.app import app
from coterie.errors import MemoryShortage
from coterie.runtime import loading


def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["generate", "--max-tokens", "6", *arguments], input=stdin)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    own = {"prompt": "class A", "seed": 5, "max_tokens": 9, "logit_bias": {"5": -100}, "stop": ["zzz"]}
    path.write_text(f'"def f("\n\n{json.dumps(own)}\n"import"\n')
    return path


def test_each_line_of_json_is_answered_by_one(lines: Path) -> None:
    result = run("--prompts", str(lines), "--json", "--batch-size", "2")
    assert result.exit_code == 0
    records = {record["index"]: record for record in map(json.loads, result.stdout.splitlines())}
    assert sorted(records) == [0, 1, 2]
    model = coterie.load()
    common: Any = {"temperature": 0.9, "top_p": 0.95}
    own: Any = {"seed": 5, "max_tokens": 9, "logit_bias": {5: -100.0}}
    assert records[0]["text"] == model.generate("def f(", max_tokens=6, seed=0, **common).text
    assert records[1]["text"] == model.generate("class A", **own, **common).text
    assert records[2]["finish_reason"] == "length"


def test_texts_come_in_the_order_of_their_prompts(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("def f(\n   \nimport\n")
    result = run("--prompts", str(path))
    model = coterie.load()
    alone = [model.generate(p, max_tokens=6, temperature=0.9, top_p=0.95, seed=0).text for p in ("def f(", "import")]
    assert result.stdout == "".join(f"{text}\n" for text in alone)
    assert "2 texts" in result.stderr
    assert "mapped weights" in result.stderr
    assert run("--prompts", "-", stdin=b"def f(\nimport").stdout == result.stdout


FAULTS = {
    "blank": ("a.txt", b" \n\n", "prompts_empty", 5),
    "not UTF-8": ("a.txt", b"ab\xff", "prompt_encoding", 5),
    "no JSON": ("a.jsonl", b'{"prompt": ', "prompts_not_json", 5),
    "a key twice": ("a.jsonl", b'{"prompt": "a", "prompt": "b"}', "prompts_duplicate_key", 5),
    "a list": ("a.jsonl", b"[1]", "prompts_line", 5),
    "no prompt": ("a.jsonl", b'{"seed": 1}', "prompts_line", 5),
    "a number": ("a.jsonl", b'{"prompt": 5}', "request_prompt", 5),
    "an unknown option": ("a.jsonl", b'{"prompt": "a", "nonesuch": 5}', "request_unknown", 5),
    "an option out of range": ("a.jsonl", b'"a"\n{"prompt": "a", "top_p": 5}', "request_top_p", 5),
    "a bias of no token": ("a.jsonl", b'{"prompt": "a", "logit_bias": {"x": 5}}', "request_logit_bias", 5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_are_no_prompts_are_refused(fault: str, tmp_path: Path) -> None:
    name, data, code, exit_code = FAULTS[fault]
    (tmp_path / name).write_bytes(data)
    result = run("--prompts", str(tmp_path / name), "--json")
    assert (json.loads(result.stdout)["error"]["code"], result.exit_code) == (code, exit_code)


def test_a_place_without_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "no", tmp_path):
        assert run("--prompts", str(path)).exit_code == 3


@pytest.mark.parametrize("arguments", [(), ("a", "--prompts", "b")])
def test_a_prompt_or_a_file_of_them(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


def test_ctrl_c_keeps_what_was_made(lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = coterie.Model.stream_batch

    def cut(self: Any, *arguments: Any, **options: Any) -> Any:
        stream = honest(self, *arguments, **options)
        pieces = iter(stream)

        def some() -> Iterator[Any]:
            for _ in range(4):
                yield next(pieces)
            raise KeyboardInterrupt

        monkeypatch.setattr(type(stream), "__iter__", lambda _self: some())
        return stream

    monkeypatch.setattr(coterie.Model, "stream_batch", cut)
    result = run("--prompts", str(lines), "--json")
    assert result.exit_code == 130
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(record["index"] for record in records) == [0, 1, 2]
    assert "interrupted" in {record["finish_reason"] for record in records}
    assert any(record["text"] for record in records)


def test_a_prompt_cache_in_a_file(tmp_path: Path, lines: Path) -> None:
    path = str(tmp_path / "cache")
    prompt = "def mean(values):"
    first = json.loads(run(prompt, "--prompt-cache", path, "--json").stdout)
    again = json.loads(run(prompt, "--prompt-cache", path, "--json").stdout)
    assert first["n_cached_tokens"] == 0
    assert again["n_cached_tokens"] == again["n_prompt_tokens"] - 1
    assert again["text"] == first["text"]
    assert again["memory"]["peak"] > again["memory"]["weights"] > 0
    told = run(prompt, "--prompt-cache", path).stderr
    assert "of the prompt were in the cache" in told
    assert "of them known" in told
    before = Path(path).read_bytes()
    assert run("--prompts", str(lines), "--prompt-cache", path).exit_code == 0
    assert Path(path).read_bytes() == before


def test_a_file_that_is_no_prompt_cache_is_refused_and_kept(lines: Path) -> None:
    before = lines.read_bytes()
    assert run("a", "--prompt-cache", str(lines)).exit_code == 3
    assert lines.read_bytes() == before


def test_a_model_that_does_not_fit_is_said_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda: 5 << 20)
    result = run("def f(")
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert "5.0 MiB of memory are available" in line


def test_warnings_of_others_are_shown_as_ever() -> None:
    from coterie.cli.console import stderr, warnings_on

    with pytest.warns(DeprecationWarning, match="old"), warnings_on(stderr()):
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert issubclass(MemoryShortage, UserWarning)


def test_statistics_count_all_texts() -> None:
    made = coterie.load().generate_batch(["def", "import x"], max_tokens=3)
    assert generate_many.statistics(made).startswith("2 texts · ")
