"""`coterie bench model` on tiny models: its figures, its peers, its command."""

import io
import json
from collections.abc import Sequence

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.tiny_models import TINY
from coterie.backends.cpu.pool import get_pool
from coterie.bench import command, model, model_table, real_models
from coterie.bench.entrants import RefusedError
from coterie.bench.model import Entrant, Settings
from coterie.bench.shapes import FORMATS
from coterie.bench.subject import Subject, cache_bytes
from coterie.bench.subjects import from_disk, from_shape
from coterie.cli.app import app

FAST = Settings(prompt=6, steps=3, prefill=10, repeats=2, peers=(), buffer_bytes=4 << 20)


def subject(name: str = "gemma-4-26b-a4b") -> Subject:
    return from_shape(TINY[name], 2, FORMATS["4bit"], "4bit")


class Ticking:
    """A clock that moves on by a second whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Fake:
    """A peer with set times; it fails in a round of its own."""

    def __init__(self, fails_in: int | None = None) -> None:
        self.fails_in, self.n = fails_in, 0

    def prefill(self, _ids: Sequence[int]) -> float:
        return 5.0

    def decode(self, _prompt: Sequence[int], _ids: Sequence[int]) -> tuple[float, list[float]]:
        self.n += 1
        if self.n == self.fails_in:
            raise RefusedError("it broke down")
        return 4.0, [3.0, 1.0, 2.0]

    def peak_memory(self) -> int:
        return 77


def use_peer(monkeypatch: pytest.MonkeyPatch, peer: Fake | Exception) -> None:
    def make(*_):
        if isinstance(peer, Exception):
            raise peer
        return Entrant("llama.cpp", "peer", peer, 1000.0, "a fake", peer.peak_memory())

    monkeypatch.setattr(model, "_PEERS", {"llama.cpp": make})
    monkeypatch.setattr(model, "_SETTLE", 0.0)


def with_peer(monkeypatch: pytest.MonkeyPatch, peer: Fake | Exception) -> model.Report:
    use_peer(monkeypatch, peer)
    made = subject()
    made.clock = Ticking()
    return model.run(Settings(**{**settings_of(FAST), "peers": ("llama.cpp",)}), lambda: made)


def settings_of(settings: Settings) -> dict:
    return {name: getattr(settings, name) for name in settings.__slots__}


def test_figures_are_medians_and_ratios_are_over_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    report = with_peer(monkeypatch, Fake())
    own, peer = report.rows
    assert own.first_token.median == 1.0
    assert own.decode_rate.median == 1.0
    assert own.prefill_rate.median == 10.0
    assert own.decode_ratio is own.prefill_ratio is None
    assert own.byte_rate.median == own.bytes_per_token
    assert own.bandwidth_ratio.low <= own.bandwidth_ratio.median <= own.bandwidth_ratio.high
    assert own.peak_memory > 1 << 20
    assert (peer.first_token.median, peer.decode_rate.median, peer.prefill_rate.median) == (4.0, 0.5, 2.0)
    assert peer.decode_ratio is not None
    assert peer.prefill_ratio is not None
    assert (peer.decode_ratio.median, peer.prefill_ratio.median) == (2.0, 5.0)
    assert (peer.byte_rate.median, peer.peak_memory) == (500.0, 77)
    assert report.read_bandwidth is not None
    assert report.threads == get_pool().n_threads


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (ImportError("No module named 'llama_cpp'"), "not installed (No module named 'llama_cpp')"),
        (RefusedError("cannot do that"), "cannot do that"),
        (Fake(fails_in=2), "it broke down"),
    ],
)
def test_a_peer_that_is_out_is_a_line(monkeypatch: pytest.MonkeyPatch, peer: Fake | Exception, reason: str) -> None:
    report = with_peer(monkeypatch, peer)
    assert report.rows[0].decode_rate.n == 2
    assert report.refusals == {"llama.cpp": reason}


def test_the_record_and_the_tables_hold_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    report = with_peer(monkeypatch, Fake())
    found = json.loads(json.dumps(model_table.record(FAST, report), allow_nan=False))
    assert found["rows"][1]["decode_ratio"]["median"] == 2.0
    assert found["hardware"]["threads"] == report.threads
    console = Console(width=200, record=True, file=io.StringIO())
    for part in (model_table.heading(found), model_table.rows(found), model_table.notes(found)):
        console.print(part)
    text = console.export_text()
    for wanted in ("Gemma-4-26B-A4B, 2 of 30 layers", "coterie is faster: decode", "peak memory", "a fake", "6 to 9"):
        assert wanted in text


def test_bytes_of_a_step_count_what_it_attends_to() -> None:
    made = subject()
    sliding, full = (layer.attention for layer in made.decoder.architecture.layers)
    assert (sliding.window, full.window) == (16, None)
    one = 2 * 4 * sliding.n_kv_heads * sliding.head_dim, 2 * 4 * full.n_kv_heads * full.head_dim
    assert cache_bytes(made.decoder.architecture, 10) == 10 * one[0] + 10 * one[1]
    assert cache_bytes(made.decoder.architecture, 40) == 16 * one[0] + 40 * one[1]
    steps = [cache_bytes(made.decoder.architecture, n) for n in (15, 16, 17)]
    assert made.bytes_per_token(14, 3) == made.description.nbytes_per_token + sum(steps) / 3


class Watched:
    """Steps that keep their logits, which the next step may overwrite."""

    def __init__(self, make) -> None:
        self.make, self.seen = make, []

    def __call__(self, caches):
        self.steps = self.make(caches)
        return self

    def logits(self, ids):
        self.seen.append(self.steps.logits(ids).copy())
        return self.seen[-1]

    def close(self) -> None:
        self.steps.close()


def test_steps_see_the_prompt() -> None:
    """The last logits of a prompt in one go are those of its end in steps, as far as activations of 16 bits go."""
    made = subject()
    prompt, ids = [1, 2, 3, 4], [5, 6]
    watched = Watched(made.decoder.steps)
    made.decoder.steps = watched  # type: ignore[method-assign]
    made.decode(prompt, ids)
    seen = watched.seen
    assert len(seen) == 2
    whole = made.last_logits([*prompt, *ids])
    assert np.linalg.norm(seen[-1][0] - whole) < 2e-4 * np.linalg.norm(whole)


def test_the_bundled_model_has_its_first_word_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "first_output", lambda _folder, repeats: [2.0] * repeats)
    report = model.run(FAST, lambda: from_disk(None))
    assert report.command_seconds is not None
    assert report.command_seconds.median == 2.0


@pytest.mark.slow
def test_the_first_word_of_a_command_is_timed(tmp_path) -> None:
    from coterie import bundled

    assert 0 < command.first_output(bundled.path(), 1)[0] < 600
    with pytest.raises(RefusedError, match="code 3"):
        command.first_output(tmp_path, 1)


# The command ---------------------------------------------------------------------------------------------------------


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str):
    monkeypatch.setattr(real_models, "REAL_MODELS", TINY)
    return CliRunner().invoke(app, ["bench", "model", *arguments])


def test_the_command_prints_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--layers", "2", "--prompt", "4", "--steps", "2", "--prefill", "4", "--repeats", "1", "--peers", "none"]
    result = invoke(monkeypatch, "--shape", "qwen3-30b-a3b", *small, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["model"].startswith("Qwen3-30B-A3B, 2 of 48 layers")
    assert [row["kernel"] for row in found["rows"]] == ["coterie"]
    assert found["command_seconds"] is None


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--shape", "gpt-5"], 5, "expected all, or some of qwen3-30b-a3b"),
        (["--shape", "all"], 5, "expected one shape"),
        (["--shape", "qwen3-30b-a3b", "--format", "3bit"], 5, "4bit, 8bit, mxfp4"),
        (["--shape", "qwen3-30b-a3b", "some/folder"], 5, "expected one of them"),
        (["--layers", "2"], 5, "--layers belongs to --shape"),
        (["--peers", "vllm"], 5, "llama.cpp"),
        (["--prefill", "100000"], 5, "the model's context has"),
        (["--shape", "qwen3-30b-a3b", "--layers", "1000"], 5, "at most the 48"),
        (["no/such/folder"], 5, "no/such/folder"),
        (["--steps", "0"], 2, "steps"),
    ],
)
def test_what_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], exit_code: int, words: str
) -> None:
    result = invoke(monkeypatch, *arguments)
    assert result.exit_code == exit_code, result.output
    assert words in " ".join(result.stderr.split())
