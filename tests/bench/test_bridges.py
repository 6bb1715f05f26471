"""`coterie bench bridge` on tiny models: its figures, its table, what it refuses."""

import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.tiny_models import TINY
from coterie.bench import real_models
from coterie.bench.bridges import mlx_lm, rounds, table
from coterie.bench.bridges import transformers as transformers_bridge
from coterie.bench.bridges.rounds import Settings, Way
from coterie.bench.shapes import FORMATS
from coterie.cli.app import app
from coterie.errors import CapacityError

FAST = Settings(prompt=5, prefill=4, steps=3, peer_steps=2, repeats=2)


class Fake(Way):
    """A library with set times."""

    def __init__(self, ours: bool, seconds: float) -> None:
        super().__init__("fake", ours, 77)
        self.seconds = seconds

    def prefill(self, ids):
        return self.seconds * len(ids)

    def decode(self, ids, n_steps):
        assert (len(ids), n_steps) == (FAST.prompt, FAST.steps if self.ours else FAST.peer_steps)
        return self.seconds

    def logits(self, _ids):
        return np.array([3.0, 4.5 if self.ours else 4.0])

    def exact_logits(self, _ids):
        return np.array([3.0, 4.0])


def test_figures_are_formed_within_rounds() -> None:
    def make(*_):
        return [Fake(False, 2.0), Fake(True, 0.5)]

    report = rounds.run(make, FAST, TINY["qwen3-30b-a3b"], 2, FORMATS["4bit"])
    alone, ours = report.rows
    assert (alone.decode_rate.median, ours.decode_rate.median) == (0.5, 2.0)
    assert (alone.faster.median, ours.faster.median, ours.faster.n) == (1.0, 4.0, 2)
    assert (alone.prefill_rate, ours.prefill_rate, ours.prefill_faster) == (0.5, 2.0, 4.0)
    assert (alone.error, ours.error) == (0.0, 0.1)
    text = io.StringIO()
    console = Console(file=text, width=200)
    for part in (table.heading, table.rows, table.notes):
        console.print(part(table.record(FAST, report)))
    assert "× 4 (4 to 4)" in text.getvalue()


@pytest.mark.parametrize("name", TINY)
def test_mlx_lm_patched_has_the_smaller_error(name: str) -> None:
    report = rounds.run(mlx_lm.ways, FAST, TINY[name], 2, FORMATS["mxfp4" if name.startswith("gemma") else "4bit"])
    alone, ours = report.rows
    assert (alone.label, ours.label) == ("mlx-lm", "mlx-lm, patched")
    assert 0 < ours.error < 0.1
    assert alone.error < 0.2
    assert alone.weights == ours.weights > 0


@pytest.mark.parametrize("form", ["4bit", "mxfp4"])
def test_transformers_and_the_bridge_run_the_same_weights(form: str) -> None:
    report = rounds.run(transformers_bridge.ways, FAST, TINY["qwen3-30b-a3b"], 2, FORMATS[form])
    *own, bridge = report.rows
    assert [row.label for row in own] == [f"transformers, {name}" for name in transformers_bridge.OWN_EXPERTS]
    assert bridge.label == "transformers, bridge"
    assert bridge.ours
    # Activations in bf16: other weights, or another router, would be far away.
    assert all(0 < row.error < 0.1 for row in report.rows)
    assert all(row.weights > 2 * bridge.weights for row in own)


def test_weights_without_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_bridge, "available_memory", lambda: 1 << 10)
    with pytest.raises(CapacityError, match="fewer --layers"):
        transformers_bridge.ways(TINY["qwen3-30b-a3b"], 1, FORMATS["4bit"])


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real_models, "REAL_MODELS", TINY)
    options = ["bench", "bridge", "--prompt", "3", "--prefill", "3", "--steps", "2", "--peer-steps", "1"]
    result = CliRunner().invoke(app, [*options, "--repeats", "1", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["label"] for row in found["rows"]] == ["mlx-lm", "mlx-lm, patched"]
    assert "mlx-lm" in found["versions"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--peer", "onnx"], "onnx"),
        (["--shape", "all"], "one shape"),
        (["--layers", "999"], "at most the 48"),
    ],
)
def test_what_it_refuses(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["bench", "bridge", *options, "--json"])
    assert result.exit_code == 5
    assert words in json.loads(result.stdout)["error"]["message"]


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "coterie.bench.bridges.mlx_lm")
    monkeypatch.delattr("coterie.bench.bridges.mlx_lm", raising=False)
    monkeypatch.setitem(sys.modules, "mlx_lm.generate", None)
    result = CliRunner().invoke(app, ["bench", "bridge", "--json"])
    assert result.exit_code == 4
    assert "pip install" in json.loads(result.stdout)["error"]["message"]
