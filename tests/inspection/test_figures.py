"""The plots as files, with text that fonts lack or that is meant for other programs; and without matplotlib."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from coterie.errors import BackendUnavailableError, CheckpointError
from coterie.inspect import Report, figures, files
from coterie.inspect.labels import flow, label, times
from coterie.inspect.summary import dumps, summary
from inspection.traces import layer, trace


@pytest.fixture
def report(rng: np.random.Generator) -> Report:
    layers = (layer(rng, 0, 120, 8, 2, unused=(1,)), layer(rng, 2, 120, 20, 4))
    return Report.of(trace(rng, *layers, n_layers=3), least=2)


@pytest.mark.parametrize("draw", ["heatmap", "strip", "coactivation"])
def test_each_plot_is_a_picture_and_warns_of_nothing(report: Report, draw: str) -> None:
    target = io.BytesIO()
    function = getattr(figures, draw)
    arguments = () if draw == "heatmap" else (report.layers[1],)
    function(report, *arguments, target)
    data = target.getvalue()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(data[place : place + 4], "big") for place in (16, 20))
    assert 400 < width < 3000
    assert 300 < height < 3000


def test_one_token_can_be_drawn(rng: np.random.Generator) -> None:
    report = Report.of(trace(rng, layer(rng, 0, 1, 8, 8)))
    for draw in (figures.strip, figures.coactivation):
        draw(report, report.layers[0], io.BytesIO())
    figures.heatmap(report, io.BytesIO())


def test_all_files_are_written(report: Report, tmp_path: Path) -> None:
    written = files.write_all(report, tmp_path / "out", 2)
    names = ["report.json", "report.html", "heatmap.png", "strip-layer-2.png", "coactivation-layer-2.png"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == summary(report)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="writing failed"):
        files.write_all(report, tmp_path / "file")


def test_without_matplotlib_it_is_said_how_to_get_it(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install 'coterie\[plots\]'"):
        figures.check()
    assert files.page(report)


def test_the_summary_adds_up(report: Report) -> None:
    value = json.loads(dumps(summary(report, top=3)))
    for found in value["layers"]:
        loads = [expert["n_tokens"] for expert in found["experts"]]
        assert sum(loads) == value["n_tokens"] * found["top_k"]
        assert sum(map(sum, found["together"])) * 2 == value["n_tokens"] * found["top_k"] * (found["top_k"] - 1)
        assert [len(row) for row in found["together"]] == list(range(found["n_experts"] - 1, 0, -1))
        assert all(len(expert["tokens_by_count"]) <= 3 for expert in found["experts"])
        assert found["unused"] == [expert["expert"] for expert in found["experts"] if expert["n_tokens"] == 0]
        for pair in found["pairs"]:
            first, second = pair["first"], pair["second"]
            assert found["together"][first][second - first - 1] == pair["together"]
            assert pair["lift"] == pytest.approx(pair["together"] / pair["expected"])


def test_json_is_ascii_and_keeps_blanks() -> None:
    text = dumps({"a": [1, 2], "b": [{"text": "  {\n\x1b", "n": 1}], "c": {}, "d": []})
    assert text.isascii()
    assert json.loads(text) == {"a": [1, 2], "b": [{"text": "  {\n\x1b", "n": 1}], "c": {}, "d": []}
    assert "[1, 2]" in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" return", "␣return"),
        ("\n        ", "⏎␣×8"),
        ("    ", "␣␣␣␣"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202ehi", "\\u202ehi"),
        ("\ud800", "\\ud800"),
        ("數學", "數學"),
        ("x" * 30, "x" * 23 + "…"),
        ("", "∅"),
    ],
)
def test_labels(text: str, shown: str) -> None:
    assert label(text) == shown


def test_running_text_keeps_its_lines() -> None:
    assert flow("a b\n\tc\x07") == "a b⏎\n\tc\\x07"


def test_ratios() -> None:
    assert [times(r) for r in (0.0, 0.312, 0.994, 0.996, 2.44, 9.94, 17.4, 1234.0)] == [
        *("0.00×", "0.31×", "0.99×", "1.0×"),
        *("2.4×", "9.9×", "17×", "1,234×"),
    ]
