"""`coterie bench --device cuda` on tiny layers: what it reports, who is left out, and that its errors are errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from coterie.arrays import as_numpy
from coterie.bench.shapes import SHAPES, Shape
from coterie.cli.app import app
from coterie.errors import ArgumentError
from coterie.formats import codec
from coterie.moe import Experts

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from coterie.bench.cuda import compiling, entrants, ops, peers, report, table  # noqa: E402
from coterie.bench.cuda.accuracy import Reference, decode  # noqa: E402
from coterie.bench.cuda.clock import Recording  # noqa: E402
from coterie.bench.cuda.entrants import Case, Entrant, Layer, own  # noqa: E402
from coterie.bench.cuda.layers import Maker, Plan, plan  # noqa: E402
from coterie.bench.cuda.limits import Limits, Sizes  # noqa: E402
from coterie.bench.cuda.peer_module import load_peer  # noqa: E402
from coterie.bench.entrants import RefusedError  # noqa: E402
from coterie.bench.peers.torch import gated  # noqa: E402

TINY = {name: Shape(name, name.title(), 128, 64, 4, 2, SHAPES[name].activation) for name in SHAPES}
SMALL = Sizes(1 << 16, 32, 2)
FAST = ops.Settings(shapes=["qwen3"], formats=["4bit"], tokens=(1, 3), peers=(), repeats=2, seconds=0.0, sizes=SMALL)

MODULE = """
NAME, NOTE = "mine", "for tests"
import torch

def prepare(layer):
    if layer.format != "bf16":
        raise ValueError("bf16 is all it can\\nand no more")
    def run(x, logits):
        weights, ids = torch.softmax(logits, -1).topk(layer.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros(x.shape, device=x.device)
        for token in range(len(x)):
            for weight, expert in zip(weights[token], ids[token]):
                gate, up = (part[expert].float() @ x[token].float() for part in (layer.gate, layer.up))
                hidden = torch.nn.functional.silu(gate) * up
                out[token] += weight * (layer.down[expert].float() @ hidden)
        return 1.01 * out
    return run
"""


def unable(_case: Case) -> list[Entrant]:
    raise RefusedError("cannot do it")


def frail(case: Case) -> list[Entrant]:
    """One is broken for more than one token, the other does not go as far."""

    def layer(x: torch.Tensor, _logits: torch.Tensor) -> torch.Tensor:
        if len(x) > 1:
            raise ValueError("broke down")
        return x * 2

    layers = [layer for _ in case.layers]
    return [Entrant("frail", layers), Entrant("short", layers, most_tokens=1)]


PEERS = {"unable": unable, "frail": frail}


def case_of(device: str, name: str, format_name: str, n_layers: int = 1) -> Case:
    fmt, shape = ops.FORMATS[format_name], TINY[name]
    maker = Maker(torch.device(device))
    return Case(shape, format_name, fmt, [maker.experts(shape, fmt) for _ in range(n_layers)], plan(shape, fmt, 1, 1))


def quick(case: Case) -> Entrant:
    """In our place: the layer in f32 by PyTorch, much faster than the interpreter."""

    def layer(experts: Experts) -> Layer:
        def run(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            ids, weights = peers.routed(logits, case.shape.top_k)
            out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
            for token, slot in np.ndindex(*ids.shape):
                expert = int(ids[token, slot])
                parts = [
                    decode(part, expert) @ x[token].double() for part in (experts.gate, experts.up) if part is not None
                ]
                gate, up = parts if len(parts) == 2 else parts[0].chunk(2)
                hidden = gated(gate, up, experts.activation)
                out[token] += weights[token, slot] * (decode(experts.down, expert) @ hidden)
            return out.to(x.dtype)

        return run

    return Entrant("coterie", [layer(experts) for experts in case.layers], "coterie")


# The whole run -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("doors")
def test_a_run_from_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.setattr(ops, "PEERS", PEERS)
    monkeypatch.setattr(entrants, "own", quick)
    monkeypatch.setattr(compiling, "rehearse", lambda *_: None)
    modules = [load_peer(tmp_path / "mine.py")]
    settings = replace(FAST, formats=["4bit", "bf16"], peers=list(PEERS), modules=modules)
    seen: list = []
    run = ops.run(settings, ops.Watch(seen.append, seen.append, seen.append), TINY)
    kernels = [(row.format, row.tokens, row.kernel) for row in run.rows]
    assert kernels == [
        ("4bit", 1, "coterie"), ("4bit", 1, "frail"), ("4bit", 1, "short"), ("4bit", 3, "coterie"),
        ("bf16", 1, "coterie"), ("bf16", 1, "frail"), ("bf16", 1, "short"), ("bf16", 1, "mine"),
        ("bf16", 3, "coterie"), ("bf16", 3, "mine"),
    ]  # fmt: skip
    for row in run.rows:
        assert 0 < row.seconds.low <= row.seconds.median <= row.seconds.high
        assert row.floor_ratio.high == pytest.approx(row.floor / row.seconds.low)
        assert row.touched_bytes <= 4 * 3 * 128 * 64 * 2
        assert row.flops == 2 * 3 * row.tokens * 2 * 128 * 64
        if row.kernel == "coterie":
            assert 0 < row.error_overall <= row.error < 1e-2
        if row.kernel == "mine":
            assert 0.009 < row.error < 0.011
    assert [row for row in seen if row in run.rows] == run.rows
    reasons = {(refusal.kernel, refusal.format): refusal.reason for refusal in run.refusals}
    assert reasons["unable", "bf16"] == "cannot do it"
    assert reasons["coterie_peer_mine", "4bit"] == "ValueError: bf16 is all it can"
    assert "failed at 3 tokens: ValueError: broke down" in reasons["frail", "4bit"]
    record = json.loads(json.dumps(report.record(settings, run), allow_nan=False))
    assert_shown(record)
    assert_drawn(record, tmp_path / "roofline.png")


def assert_shown(record: dict) -> None:
    """Every row is a line, and a cell in Markdown."""
    lines = [table.line(row).split()[:2] for row in record["rows"]]
    assert lines == [[str(row["tokens"]), row["kernel"]] for row in record["rows"]]
    text = "\n".join([*table.heading(record), *table.notes(record)])
    for wanted in ("reads", "TB/s", "an empty kernel", "for tests", "unable left out of qwen3 4bit, qwen3 bf16"):
        assert wanted in text
    tables = table.markdown(record).split("\n\n")
    assert len(tables) == 3
    assert [line.count("|") for line in tables[2].splitlines()] == [6] * 7
    assert "| Qwen3-30B-A3B | floor |" in tables[2]


def assert_drawn(record: dict, path: Path) -> None:
    pytest.importorskip("matplotlib")
    from coterie.bench.plot import write

    write(record, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# The parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "format_name"), list(zip(TINY, ops.FORMATS, strict=True)))
def test_random_layers_keep_the_size_of_activations_and_ours_are_right(doors: str, name: str, format_name: str) -> None:
    case = case_of(doors, name, format_name)
    maker = Maker(torch.device(doors), 1)
    x, logits = maker.numbers(11, 128, dtype=torch.bfloat16), maker.numbers(11, 4)
    reference = Reference(x, logits, case.layers[0], 2)
    out = own(case).layers[0](x, logits)
    assert 0.02 < float(out.float().square().mean().sqrt()) < 2
    assert 0 < reference.errors(out).worst_row < 1e-2
    wrong = out.clone()
    wrong[-1] *= 1.5
    errors = reference.errors(wrong)
    assert errors.worst_row == pytest.approx(0.5, rel=0.05)
    assert errors.overall < errors.worst_row
    assert np.isnan(reference.errors(out * float("nan")).worst_row)


@pytest.mark.parametrize("format_name", ["4bit", "8bit", "mxfp4"])
def test_weights_are_decoded_as_the_codec_does(doors: str, format_name: str) -> None:
    packed = case_of(doors, "qwen3", format_name).layers[0].down
    parts = [None if part is None else as_numpy(part.cpu())[3] for part in (packed.codes, packed.scales, packed.biases)]
    np.testing.assert_array_equal(decode(packed, 3).cpu().numpy(), codec.dequantize_f64(*parts, packed.format))


def test_a_play_touches_more_than_the_cache_and_fits_the_budget() -> None:
    whole = Plan(expert_bytes=1 << 20, n_experts=8, top_k=2, budget=1 << 40, cache=4 << 20)
    assert [whole.layers(n) for n in (1, 4096)] == [16, 4]
    assert Plan(1 << 20, 8, 2, 20 << 20, 4 << 20).layers(1) == 2
    assert Plan(1 << 20, 8, 2, 1, 4 << 20).layers(1) == 1
    assert Plan(1 << 20, 8, 2, 1 << 40, 1).layers(1) == 2
    assert Plan(1 << 20, 8, 2, 1 << 40, 1 << 40).layers(1) == 24


def test_limits_are_kept_and_floors_are_of_the_longer(doors: str) -> None:
    limits = Limits(torch.device(doors), SMALL)
    limits.measure(2)
    assert {name: found and found.n for name, found in limits.summaries().items()} == dict.fromkeys(limits.values, 2)
    limits.values["read_bandwidth"], limits.values["bf16_rate"] = [1.0, 2.0, 9.0], [4.0]
    assert (limits.floor(10, 1), limits.floor(1, 10)) == (5.0, 2.5)


def test_what_is_read_is_all_of_it(doors: str) -> None:
    from coterie.bench.cuda.probes import read_kernel

    source = torch.arange(1000, dtype=torch.int32, device=doors)
    sums = torch.empty(4, dtype=torch.int32, device=doors)
    read_kernel[(4,)](source, sums, 1000, STEPS=2, BLOCK=128)
    assert sums.tolist() == [int(source[begin : begin + 256].sum()) for begin in range(0, 1000, 256)]


def test_work_is_played_as_often_as_it_is_asked_for() -> None:
    calls: list[int] = []
    recording = Recording(lambda: calls.append(1), torch.device("cpu"))
    assert recording.seconds(3) >= 0
    assert (len(calls), recording.is_graph) == (4, False)


@pytest.mark.cuda
def test_work_that_waits_is_called_and_other_work_is_recorded() -> None:
    x = torch.ones(1 << 20, device="cuda")
    assert Recording(lambda: x * 2, x.device).is_graph
    waiting = Recording(lambda: x.sum().item(), x.device)
    assert not waiting.is_graph
    assert waiting.seconds(2) > 0
    assert Recording(lambda: x + torch.randn(3, device="cuda")[0], x.device).is_graph


@pytest.mark.usefixtures("doors")
def test_few_calls_are_compiled_where_they_are_measured() -> None:
    compiling.call_once(TINY["gpt-oss"], ops.FORMATS["mxfp4"], 2)
    said: list[str] = []
    compiling.compile_ahead([(TINY["qwen3"], "4bit", None)], (1,), said.append)
    assert said == []


# Peers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", ["torch", "transformers"])
@pytest.mark.parametrize("name", ["gemma4", "gpt-oss"])
def test_peers_compute_the_same_layer(doors: str, peer: str, name: str) -> None:
    if peer == "transformers":
        pytest.importorskip("transformers")
    case = case_of(doors, name, "bf16")
    maker = Maker(torch.device(doors), 1)
    x, logits = maker.numbers(5, 128, dtype=torch.bfloat16), maker.numbers(5, 4)
    reference = Reference(x, logits, case.layers[0], 2)
    found = list(peers.PEERS[peer](case))
    assert found
    for entrant in found:
        assert 0 < reference.errors(entrant.layers[0](x, logits)).worst_row < 2e-2, entrant.label
    with pytest.raises(RefusedError, match="bf16"):
        peers.PEERS[peer](case_of(doors, name, "4bit"))


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "no .py file"), ("x = 1", "no function prepare"), ("import nothing_like_it", "ModuleNotFoundError")],
)
def test_a_peer_module_that_is_none_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "peer.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArgumentError, match=words):
        load_peer(path)


# The command ---------------------------------------------------------------------------------------------------------


def invoke(monkeypatch: pytest.MonkeyPatch, *arguments: str):
    monkeypatch.setattr(ops, "SHAPES", TINY)
    monkeypatch.setattr(entrants, "own", quick)
    monkeypatch.setattr(ops, "Limits", lambda place, _sizes: Limits(place, SMALL))
    return CliRunner().invoke(app, ["bench", "ops", "--device", "cuda", *arguments])


QUICK = ["--quick", "--shapes", "qwen3", "--tokens", "1", "--repeats", "1", "--seconds", "0"]


@pytest.mark.usefixtures("doors")
@pytest.mark.parametrize("option", ["--json", "--markdown", None])
def test_the_command_prints_rows_as_they_come(monkeypatch: pytest.MonkeyPatch, option: str | None) -> None:
    result = invoke(monkeypatch, *QUICK, *([option] if option else []))
    assert result.exit_code == 0, result.output
    rows, other = (result.stderr, result.stdout) if option else (result.stdout, result.stderr)
    assert "coterie" in rows.split("qwen3 4bit", 1)[1]
    if option == "--json":
        assert [row["kernel"] for row in json.loads(other)["rows"]] == ["coterie"]
    if option == "--markdown":
        assert "| Qwen3-30B-A3B | floor |" in other


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--threads", "2"], "--threads belongs to --device cpu"),
        (["--formats", "3bit"], "bf16"),
        (["--peers", "mlx"], "torch, transformers"),
        (["--peer-module", "no/such.py"], "prepare(layer)"),
        (["--device", "tpu"], "cpu, cuda"),
        (["--device", "cpu", "--markdown"], "--markdown belongs to --device cuda"),
    ],
)
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str) -> None:
    result = invoke(monkeypatch, *arguments)
    assert result.exit_code == 5, result.output
    assert words in " ".join(result.stderr.split())
    assert result.stderr.count("\n") == 1
