"""`coterie inspect`: its tables, its files, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from coterie.checkpoint import write_safetensors
from coterie.cli import inspect as command
from coterie.cli.app import app
from coterie.inspect import Report, read
from models import tiny

TEXT = "def read_lines(path):\n    return open(path).read()\n" * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and its trace through a tiny model."""
    made = tmp_path_factory.mktemp("inspect")
    (made / "text.py").write_text(TEXT)
    model = tiny.checkpoint("qwen3_moe", "4 bits g64")
    result = inspect(model, "--text", made / "text.py", "--record", made / "a.trace")
    assert result.exit_code == 0, result.stderr
    return made


def inspect(*arguments: str | Path, columns: int = 80, stdin: bytes | None = None) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(app, ["inspect", *map(str, arguments)], input=stdin)


def test_json_from_a_text_on_standard_input_and_from_its_trace_agree(folder: Path) -> None:
    model = tiny.checkpoint("qwen3_moe", "4 bits g64")
    live = json.loads(inspect(model, "--text", "-", "--json", stdin=TEXT.encode()).stdout)
    replayed = json.loads(inspect("--trace", folder / "a.trace", "--json").stdout)
    assert live == replayed
    assert [layer["layer"] for layer in live["layers"]] == [0, 2]
    for layer in live["layers"]:
        assert sum(expert["n_tokens"] for expert in layer["experts"]) == live["n_tokens"] * layer["top_k"]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("detail", [[], ["--layer", "2"], ["--layer", "2", "--expert", "3"]], ids=str)
def test_tables_fit_and_have_the_figures(folder: Path, detail: list[str], columns: int) -> None:
    result = inspect("--trace", folder / "a.trace", *detail, columns=columns)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert "…" not in result.stdout
    report = Report.of(read(folder / "a.trace"))
    layer = report.layer(2)
    if detail == []:
        assert f"{layer.load_entropy:.2f}/3.00" in result.stdout
        assert f"{layer.router_entropy:.2f}" in result.stdout
        assert "1 of 3 layers have no experts" in " ".join(result.stdout.split())
    elif len(detail) == 2:
        assert all(f"{n}" in result.stdout for n in layer.counts.tolist())
    else:
        assert f"expert 3: {layer.counts[3]} of {len(report.trace.tokens)} tokens" in result.stdout


def test_all_files_and_the_page_alone(folder: Path, tmp_path: Path) -> None:
    arguments = ("--trace", folder / "a.trace", "--layer", "0")
    assert inspect(*arguments, "--out", tmp_path / "out").exit_code == 0
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png", ".html", ".json"}
    assert inspect(*arguments, "--html", tmp_path / "page.html").exit_code == 0
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "out" / "report.html").read_bytes()


def test_a_long_text_goes_in_windows_and_says_so(folder: Path) -> None:
    model = tiny.checkpoint("qwen3_moe", "4 bits g64")
    result = inspect(model, "--text", folder / "text.py", "--window", "10", "--json")
    record = json.loads(result.stdout)
    assert record["window"] == 10
    assert record["n_windows"] == -(-record["n_tokens"] // 10) > 1
    text = inspect(model, "--text", folder / "text.py", "--window", "10").stdout
    assert f"in {record['n_windows']} windows of 10" in " ".join(text.split())


def test_names_of_strangers_cannot_steer_the_terminal(folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from coterie.inspect import save

    trace = read(folder / "a.trace")
    texts = {token: f"\x1b[2J\u202e{token}" for token in trace.texts}
    save(replace(trace, model="\x1b]0;owned\x07", texts=texts), tmp_path / "evil")
    for detail in ([], ["--layer", "0"], ["--layer", "0", "--expert", "1"]):
        output = inspect("--trace", tmp_path / "evil", *detail).stdout
        assert output
        assert not [c for c in output if (ord(c) < 32 and c != "\n") or c == "\u202e"]


BAD: dict[str, tuple[list[str], int, str]] = {
    "nothing to read": ([], 5, "inspect_input"),
    "a text and a trace": (["--text", "{text}", "--trace", "{trace}"], 5, "inspect_input"),
    "a model for a trace": (["{model}", "--trace", "{trace}"], 5, "inspect_input"),
    "a window for a trace": (["--trace", "{trace}", "--window", "4"], 5, "inspect_input"),
    "an expert of no layer": (["--trace", "{trace}", "--expert", "1"], 5, "inspect_input"),
    "a text that is not there": (["{model}", "--text", "{none}"], 5, "text_file"),
    "a folder as text": (["{model}", "--text", "{folder}"], 5, "text_file"),
    "bytes that are not UTF-8": (["{model}", "--text", "{latin}"], 5, "text_encoding"),
    "an empty text": (["{model}", "--text", "{empty}"], 5, "request_empty"),
    "a window beyond the context": (["{model}", "--text", "{text}", "--window", "5000"], 5, "request_window"),
    "a model that is not there": (["{none}", "--text", "{text}"], 5, ""),
    "a model without experts": (["{dense}", "--text", "{text}"], 4, "no_experts"),
    "a trace that is not there": (["--trace", "{none}"], 3, "file_missing"),
    "a text as trace": (["--trace", "{text}"], 3, ""),
    "a checkpoint as trace": (["--trace", "{weights}"], 3, "trace"),
    "a trace cut short": (["--trace", "{cut}"], 3, ""),
    "a layer without experts": (["--trace", "{trace}", "--layer", "1"], 5, "inspect_layer"),
    "an expert beyond the last": (["--trace", "{trace}", "--layer", "0", "--expert", "8"], 5, "inspect_expert"),
    "a page into no folder": (["--trace", "{trace}", "--html", "{none}/a.html"], 5, "inspect_target"),
    "a record into no folder": (["{model}", "--text", "{text}", "--record", "{none}/a"], 5, "inspect_target"),
    "a record over a folder": (["{model}", "--text", "{text}", "--record", "{folder}"], 5, "inspect_target"),
    "files into a file": (["--trace", "{trace}", "--out", "{text}"], 5, "inspect_target"),
    "files into a folder of no folder": (["--trace", "{trace}", "--out", "{none}/a"], 5, "inspect_target"),
    "a negative layer": (["--trace", "{trace}", "--layer", "-1"], 2, ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "cut").write_bytes((folder / "a.trace").read_bytes()[:-10])
    write_safetensors(tmp_path / "weights", {"a": np.ones(3, np.float32)})
    model, dense = tiny.checkpoint("qwen3_moe", "4 bits g64"), tiny.checkpoint("gemma4_dense", "plain")
    places = {"text": folder / "text.py", "trace": folder / "a.trace", "model": model, "dense": dense}
    places |= {"folder": tmp_path, "none": tmp_path / "none"}
    places |= {stem: tmp_path / stem for stem in ("latin", "empty", "cut", "weights")}
    arguments, exit_code, code = BAD[name]
    result = inspect(*(argument.format(**places) for argument in arguments), "--json")
    assert result.exit_code == exit_code
    if exit_code != 2:
        error = json.loads(result.stdout)["error"]
        assert error["code"] == (code or error["code"]) != "internal"


def test_a_text_that_is_too_long_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "MAX_TEXT", 20)
    result = inspect("--text", folder / "text.py", "--json")
    assert result.exit_code == 6
    assert json.loads(result.stdout)["error"]["code"] == "text_size"
