"""`coterie bench model --device cuda` on tiny models: its figures, its caches, its command."""

import json
from dataclasses import replace
from math import prod

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.tiny_models import TINY, tiny
from coterie.bench import real_models
from coterie.bench.random_model import RandomCheckpoint
from coterie.bench.shapes import FORMATS
from coterie.cli.app import app
from coterie.errors import NumericError, RequestError
from coterie.formats import Packed
from coterie.models.description import describe
from coterie.models.families import family_of

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from coterie.bench.cuda import model, model_table, random_model, report, workloads  # noqa: E402
from coterie.bench.cuda.limits import Limits, Sizes  # noqa: E402
from coterie.bench.cuda.workloads import Settings, Work  # noqa: E402

SMALL = Sizes(1 << 16, 32, 2)
FAST = Settings(prompt=5, steps=1, prefill=3, batches=(1, 2), repeats=2, sizes=SMALL)


@pytest.fixture
def subject(doors: str) -> random_model.DeviceSubject:  # noqa: ARG001
    return random_model.from_shape(TINY["qwen3-30b-a3b"], 1, FORMATS["4bit"], "4bit")


class Clocked:
    """Seconds in the place of work: 1, 2, 3 and so on for the rounds of each line."""

    def __init__(self) -> None:
        self.done: list[Work] = []

    def __call__(self, _subject: object, work: Work, settings: Settings) -> list[float]:
        self.done.append(work)
        return [float(index + 1) for index in range(settings.repeats)]


@pytest.mark.parametrize("name", ["qwen3-30b-a3b", "gemma-4-26b-a4b", "gpt-oss-20b"])
@pytest.mark.usefixtures("doors")
def test_weights_on_the_device_are_those_of_the_other_checkpoint_but_for_the_numbers(name: str) -> None:
    real = TINY[name]
    made = random_model.from_shape(real, 2, FORMATS["mxfp4"], "mxfp4")
    config = real.config_with(2)
    family = family_of(config)
    architecture = family.architecture(config)
    other = RandomCheckpoint(architecture, family, config, FORMATS["mxfp4"])
    assert made.description == describe(architecture, other)
    for weight in made.description.weights:
        mine = made.decoder.weights[weight.path]
        if weight.layer is None or prod(weight.shape) < 1 << 14 or isinstance(mine, Packed):
            continue
        spread = np.std(np.asarray(other.packed(weight.path, 0), np.float32))
        assert float(mine.float().std()) == pytest.approx(spread, rel=0.1)


@pytest.mark.usefixtures("doors")
@pytest.mark.parametrize("work", [Work(2, alone=True), Work(None)])
def test_steps_and_passes_are_timed(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "WARM", 1)
    real = tiny("qwen3-30b-a3b", hidden_size=64, vocab_size=64, num_attention_heads=2, num_experts_per_tok=2)
    small = random_model.from_shape(real, 1, FORMATS["4bit"], "4bit")
    seconds = workloads.seconds_of(small, work, replace(FAST, repeats=1))
    assert len(seconds) == 1
    assert seconds[0] > 0


def test_a_filled_cache_has_the_prompt_and_room_for_every_step(subject: random_model.DeviceSubject) -> None:
    cache = workloads._filled(subject, FAST)
    assert (cache.length, cache.limit) == (5, 5 + workloads.WARM + 2 + 1)
    keys, values = cache.layers[0].kept()
    assert keys.shape == values.shape == (2, 5, 64)
    assert np.isfinite(keys).all()
    assert keys.std() > 0.5


def test_logits_that_are_not_finite_are_an_error(
    subject: random_model.DeviceSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "prefill", lambda *_: np.full((1, 8), np.nan, np.float32))
    with pytest.raises(NumericError):
        workloads.seconds_of(subject, Work(None), FAST)
    with pytest.raises(NumericError):
        workloads._take(iter([[3, 4], [5, -1]]), 2)


def test_figures_are_of_all_texts_and_limits_of_what_is_read(
    subject: random_model.DeviceSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clocked()
    monkeypatch.setattr(model, "seconds_of", clock)
    seen: list = []
    run = model.run(FAST, lambda: subject, model.Watch(seen.append, seen.append, seen.append))
    assert clock.done == [Work(1), Work(2), Work(2, alone=True), Work(None)]
    assert [row for row in seen if row in run.rows] == run.rows
    one, two, bits, prompt = run.rows
    assert (one.rate.median, two.rate.median, prompt.rate.median) == (0.75, 1.5, 2.25)
    assert (one.seconds.low, one.seconds.high) == (1.0, 2.0)
    assert one.n_bytes is not None
    assert two.n_bytes is not None
    cached = 2 * 2 * 2 * 64 * (5 + workloads.WARM + 1)
    assert one.n_bytes == subject.description.nbytes_per_token + cached
    assert one.n_bytes < two.n_bytes < 2 * one.n_bytes
    read = run.limits["read_bandwidth"]
    assert read is not None
    assert one.limit_ratio.high == pytest.approx(one.n_bytes / read.median)
    assert (bits.n_bytes, prompt.n_bytes, prompt.limit) == (two.n_bytes, None, "bf16")
    record = json.loads(json.dumps(report.model_record(FAST, run), allow_nan=False))
    text = "\n".join([*model_table.heading(record), *map(model_table.line, record["rows"]), *model_table.notes(record)])
    for wanted in ("Qwen3-30B-A3B, 1 of 48 layers", "2 texts, bit for bit", "prompt of 3 tokens", "behind 5 tokens"):
        assert wanted in text


def test_bytes_of_a_step_are_those_of_experts_met_by_chance(subject: random_model.DeviceSubject) -> None:
    description = subject.description
    assert model.step_bytes(description, 1) == pytest.approx(description.nbytes_per_token, abs=len(description.weights))
    assert model.step_bytes(description, 1 << 20) == pytest.approx(description.nbytes)
    experts = sum(weight.nbytes for weight in description.weights if len(weight.shape) == 3)
    rows = next(weight for weight in description.weights if weight.nbytes_per_token * 512 == weight.nbytes)
    met = model.step_bytes(description, 2) - (description.nbytes - experts - rows.nbytes)
    assert met == pytest.approx(experts * 0.75 + 2 * rows.nbytes_per_token, rel=1e-3)


def test_more_tokens_than_the_context_are_refused(subject: random_model.DeviceSubject) -> None:
    with pytest.raises(RequestError, match="has 512"):
        model.run(Settings(prompt=510, steps=1, prefill=1, sizes=SMALL), lambda: subject, model.Watch())


# The command ---------------------------------------------------------------------------------------------------------


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str):
    monkeypatch.setattr(real_models, "REAL_MODELS", TINY)
    monkeypatch.setattr(model, "seconds_of", Clocked())
    monkeypatch.setattr(workloads, "rehearse", lambda *_: None)
    monkeypatch.setattr(model, "Limits", lambda place, _sizes: Limits(place, SMALL))
    return CliRunner().invoke(app, ["bench", "model", "--device", "cuda", *arguments])


@pytest.mark.usefixtures("doors")
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_prints_lines_as_they_come(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    small = ["--shape", "gpt-oss-20b", "--layers", "2", "--prompt", "8", "--prefill", "4", "--batch", "2"]
    result = invoke(monkeypatch, *small, *(["--json"] if as_json else []))
    assert result.exit_code == 0, result.output
    assert "2 texts, bit for bit" in (result.stderr if as_json else result.stdout)
    if as_json:
        found = json.loads(result.stdout)
        assert found["model"].startswith("gpt-oss-20b, 2 of 24 layers")
        assert [row["tokens"] for row in found["rows"]] == [2, 2, 4]


@pytest.mark.usefixtures("doors")
def test_the_bundled_model_is_measured_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke(monkeypatch, "--prompt", "8", "--prefill", "4", "--batch", "1")
    assert result.exit_code == 0, result.output
    assert "1 text " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "2"], "--threads belongs to --device cpu"),
        (["--peers", "llama.cpp"], "--peers belongs to --device cpu"),
        (["--layers", "2"], "--layers belongs to --shape"),
        (["--shape", "gpt-5"], "qwen3-30b-a3b"),
        (["--shape", "qwen3-30b-a3b", "--batch", "0"], "numbers from 1"),
        (["--device", "cpu", "--batch", "2"], "--batch belongs to --device cuda"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    result = invoke(monkeypatch, *arguments)
    assert result.exit_code == 5, result.output
    assert words in " ".join(result.stderr.split())
