"""The whole harness on tiny layers: what it reports, who is left out, and that its errors are errors."""

import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from coterie.backends.cpu import isa
from coterie.backends.cpu.pool import get_pool
from coterie.bench import external, ops
from coterie.bench.accuracy import worst_row
from coterie.bench.entrants import Case, Entrant, Own, RefusedError
from coterie.bench.limits import Limits
from coterie.bench.ops import Report, Settings
from coterie.bench.record import record
from coterie.bench.shapes import FORMATS, SHAPES, Shape
from coterie.bench.weights import bits_a_weight, calls, checked_tokens, n_layers, random_layer, weight_bytes
from coterie.cli.app import app
from coterie.moe import moe_reference

TINY = {name: Shape(name, name.title(), 128, 64, 8, 2, SHAPES[name].activation) for name in SHAPES}
FAST = Settings(
    repeats=2, seconds=0.0, tokens=(1, 5), buffer_bytes=4 << 20, weight_bytes=4 << 20, peers=(), modes=("default",)
)


class _Wrong(Entrant):
    """A peer with a flaw: it computes `Own` and spoils the result, or fails at some call."""

    def __init__(self, case: Case, label: str, *, factor: float = 1.0, fails_at: int | None = None) -> None:
        self.label, self.note = label, "for tests"
        self._own, self._factor, self._fails_at = Own(case, "default"), factor, fails_at
        self.expert_bytes, self.n_layers = self._own.expert_bytes, self._own.n_layers
        self._n = 0

    def prepare(self, call):
        return call

    def run(self, layer, prepared):
        self._n += 1
        if self._n == self._fails_at:
            raise ValueError("broke down")
        return self._own.run(layer, prepared)

    def output(self, result):
        return result * self._factor

    def wanted(self):
        return self._own.wanted()


def _absent(_case: Case) -> list[Entrant]:
    raise ImportError("No module named 'absent'")


def _unable(case: Case) -> list[Entrant]:
    if case.format_name == "4bit":
        raise RefusedError("cannot do 4 bits")
    return [_Wrong(case, "able")]


PEERS = {
    "absent": _absent,
    "unable": _unable,
    "off": lambda case: [_Wrong(case, "off by a hundredth", factor=1.01)],
    "frail": lambda case: [_Wrong(case, "frail", fails_at=9)],
}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return replace(FAST, shapes=["gemma4", "gpt-oss"], formats=["4bit", "mxfp4"], peers=list(PEERS), busy=1)


@pytest.fixture(scope="module")
def report(settings: Settings) -> Report:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "PEERS", PEERS)
        patch.setattr(ops, "_BUSY_SECONDS", 0.0)
        patch.setattr(ops, "_SETTLE", 0.0)
        return ops.run(settings, known=TINY)


def test_every_case_has_its_rows(report: Report, settings: Settings) -> None:
    own = [(row.shape, row.format, row.tokens) for row in report.rows if row.kind == "coterie"]
    assert own == [(s, f, t) for s in settings.shapes for f in settings.formats for t in settings.tokens]
    able = {row.format for row in report.rows if row.kernel == "able"}
    assert able == {"mxfp4"}
    for row in report.rows:
        assert row.layers > 1
        assert row.seconds.low <= row.seconds.median <= row.seconds.high
        assert row.bandwidth_ratio.median > 0
        assert row.touched_bytes <= TINY[row.shape].n_experts * weight_bytes(TINY[row.shape], 8)
        assert (row.busy_ratio is not None) == (row.tokens == 1)


def test_errors_are_measured_against_float64(report: Report) -> None:
    for row in report.rows:
        assert row.error is not None
        if row.kernel == "off by a hundredth":
            assert 0.009 < row.error < 0.011
        else:
            assert 0 < row.error < 1e-4


def test_a_mode_that_the_machine_lacks_is_left_out() -> None:
    isa.use("portable")
    try:
        settings = replace(FAST, shapes=("qwen3",), formats=("4bit",), tokens=(1,), modes=("default", "int8"))
        report = ops.run(settings, known=TINY)
    finally:
        isa.use()
    assert [row.kernel for row in report.rows] == ["coterie"]
    assert [(refusal.kernel, "AVX-512" in refusal.reason) for refusal in report.refusals] == [("coterie int8", True)]


def test_who_is_left_out_is_a_line_with_the_reason(report: Report) -> None:
    reasons = {(r.kernel, r.format): r.reason for r in report.refusals if r.shape == "gemma4"}
    assert "not installed" in reasons["absent", "4bit"]
    assert reasons["unable", "4bit"] == "cannot do 4 bits"
    assert ("unable", "mxfp4") not in reasons
    assert "ValueError: broke down" in reasons["frail", "4bit"]


def test_the_record_is_json_with_every_figure(report: Report, settings: Settings) -> None:
    found = json.loads(json.dumps(record(settings, report, []), allow_nan=False))
    assert found["schema"] == 1
    assert found["hardware"]["threads"] == report.threads == get_pool().n_threads
    assert found["versions"]["numba"]
    assert found["limits"]["read_bandwidth"]["median"] > 0
    assert found["limits"]["read_pass"]["high"] >= found["limits"]["read_bandwidth"]["high"]
    assert len(found["rows"]) == len(report.rows)
    assert set(found["rows"][0]["seconds"]) == {"median", "low", "high", "n"}


def test_the_tables_hold_every_row(report: Report, settings: Settings) -> None:
    from rich.console import Console

    from coterie.bench import table

    found = record(settings, report, [])
    console = Console(width=120, record=True, file=io.StringIO())
    for part in (table.heading(found), table.rows(found), table.notes(found)):
        console.print(part)
    text = console.export_text()
    assert text.count("coterie  ") >= 8
    assert "…" not in text
    assert "cannot do 4 bits" in text


def test_the_plot_is_written(report: Report, settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from coterie.bench.plot import write

    path = tmp_path / "roofline.png"
    write(record(settings, report, []), path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 20_000


# The parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("format_name", FORMATS)
def test_the_reference_in_parts_is_the_layer_s_own(name: str, format_name: str) -> None:
    case = Case(TINY[name], format_name, FORMATS[format_name], 1, 1 << 20, 1 << 10)
    expected = moe_reference(case.checked.x, case.checked.routing, case.layers[0])
    np.testing.assert_allclose(case.wanted, expected, rtol=1e-12)


def test_random_layers_keep_the_size_of_activations() -> None:
    for format_name, fmt in FORMATS.items():
        layer = random_layer(TINY["qwen3"], fmt, 0)
        case = Case(TINY["qwen3"], format_name, fmt, 1, 1 << 20, 1 << 10)
        assert 0.02 < np.sqrt(np.mean(case.wanted**2)) < 2, format_name
        packed = (layer.gate, layer.up, layer.down)
        assert sum(part.nbytes for part in packed) == 8 * weight_bytes(TINY["qwen3"], bits_a_weight(fmt))


def test_calls_are_random_and_decoding_repeats_no_expert_at_once() -> None:
    shape, checked = TINY["qwen3"], checked_tokens(TINY["qwen3"])
    stream = calls(shape, 1, 1, checked)
    made = [next(stream) for _ in range(50)]
    np.testing.assert_array_equal(made[0].x[0], checked.x[0])
    for before, after in itertools.pairwise(made):
        assert not set(before.routing.ids.ravel()) & set(after.routing.ids.ravel())
    assert len({tuple(call.routing.ids.ravel()) for call in made}) > 20
    long = next(calls(shape, 5, 1, checked))
    np.testing.assert_array_equal(long.routing.ids[[0, 4]], checked.routing.ids)
    assert long.n_touched == len(np.unique(long.routing.ids))


def test_the_rotation_fits_the_budget_and_exceeds_the_cache() -> None:
    assert n_layers(400 << 20, 2 << 30, 32 << 20) == 4
    assert n_layers(400 << 20, 900 << 20, 32 << 20) == 2
    assert n_layers(3 << 30, 1 << 30, 32 << 20) == 1
    assert n_layers(3 << 30, 1 << 40, 32 << 20) == 1


def test_a_wrong_row_is_seen() -> None:
    wanted = np.ones((2, 16))
    output = np.concatenate([wanted[:1], np.full((3, 16), 7.0), wanted[1:]])
    assert worst_row(output, wanted) == 0
    output[4] += 0.5
    assert worst_row(output, wanted) == 0.5
    output[4, 0] = np.nan
    assert np.isnan(worst_row(output, wanted))


def test_the_limits_are_measured_on_the_pool() -> None:
    limits = Limits(4 << 20, 2 << 20)
    limits.warm_up()
    assert limits.summaries()["read_bandwidth"] is None
    rate, _ = limits.arithmetic()
    assert limits.read(3) > 1e6
    assert rate > 1e8
    assert len(limits.passes) == 3


def test_llama_s_own_output_is_parsed() -> None:
    text = (
        "  MUL_MAT_ID(type_a=q4_0,type_b=f32,n_mats=128,n_used=8,b=0,m=768,n=1,k=2048,o=1):"
        "     7455 runs -   137.21 us/run -  25.17 MFLOP/run - \x1b[1;34m183.42 GFLOPS\x1b[0m\n"
        "  MUL_MAT(type_a=f16): 1 runs - 2 us/run - 3 MFLOP/run - 4 GFLOPS\n"
    )
    (line,) = external.parse(text)
    assert line["type"] == "q4_0"
    assert (line["shape"], line["n"], line["n_used"]) == ("qwen3", 1, 8)
    assert line["seconds"] == pytest.approx(137.21e-6)
    assert line["flop_rate"] == pytest.approx(183.42e9)


# The command ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_one_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "SHAPES", TINY)
    monkeypatch.setattr(ops, "Limits", lambda *_: Limits(4 << 20, 2 << 20))
    arguments = ["bench", "ops", "--quick", "--shapes", "qwen3", "--tokens", "1", "--repeats", "1", "--seconds", "0"]
    arguments += ["--modes", "default"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(row["kernel"], row["format"]) for row in found["rows"]] == [("coterie", "4bit")]


@pytest.mark.parametrize(
    "arguments",
    [["--shapes", "gemma5"], ["--tokens", "0"], ["--plot", "no/such/folder/x.png"], ["--llama-bench", "no/such/file"]],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", "ops", *arguments])
    assert result.exit_code == 5, result.output
    assert "expected" in result.stderr
