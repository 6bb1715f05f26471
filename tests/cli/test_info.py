"""`coterie info`: the figures as JSON, and a table that fits a terminal."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import coterie.bench.estimate
from cli.sources import write_source
from coterie.bench.estimate import Bandwidth
from coterie.bench.measure import Summary
from coterie.cli.app import app
from coterie.cli.info import count, layers_text, ranges, size, speed


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("info")
    source = write_source(folder / "source")
    arguments = ["convert", str(source), str(folder / "target"), "--override", r".*layers\.2\.mlp.*=8"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder / "target"


def info(*arguments: object, columns: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["info", *map(str, arguments)])


def test_the_figures_as_json(target: Path) -> None:
    record = json.loads(info(target, "--json", "--no-measure").stdout)
    assert record["family"] == "qwen3_moe"
    assert record["estimate"] is None
    assert record["experts"] == [{"n_experts": 8, "top_k": 2, "width": 64, "n_layers": 2}]
    assert record["nbytes"] == sum(weight["nbytes"] for weight in record["weights"])
    formats = {weight["path"]: weight["format"] for weight in record["weights"]}
    assert formats["model.layers.0.mlp.switch_mlp.up_proj"] == "affine 4 bits, group 64"
    assert formats["model.layers.2.mlp.switch_mlp.up_proj"] == "affine 8 bits, group 64"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_and_joins_layers_that_agree(target: Path, columns: int) -> None:
    lines = info(target, "--bandwidth", 12.5, columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    table = [line.split() for line in lines]
    assert [line[1:5] for line in table if line and line[0] == "self_attn.q_proj"] == [
        ["0-2", "128×128", "4bit", "g64"]
    ]
    assert [line[1:5] for line in table if line and line[0] == "mlp.switch_mlp.up_proj"] == [
        ["0", "8×64×128", "4bit", "g64"],
        ["2", "8×64×128", "8bit", "g64"],
    ]
    assert "8 a layer, 2 for a token, 64 hidden units, in 2 layers" in "\n".join(lines)


def test_the_limit_is_the_bandwidth_over_the_bytes_of_a_token(target: Path) -> None:
    record = json.loads(info(target, "--json", "--bandwidth", 12.5, "--context", 100).stdout)
    limit = record["estimate"]
    # Two key-value heads of 32 numbers, keys and values in f32, in three layers.
    assert limit["cache_bytes"] == 100 * 3 * 2 * 2 * 32 * 4
    assert limit["weight_bytes"] == record["nbytes_per_token"]
    assert limit["tokens_per_second"] == pytest.approx(12.5e9 / (limit["weight_bytes"] + limit["cache_bytes"]))
    assert (limit["bandwidth"], limit["bandwidth_source"], limit["context"]) == (12.5e9, "given", 100)
    assert json.loads(info(target, "--json", "--bandwidth", 1).stdout)["estimate"]["context"] == 512


def test_the_limit_says_what_it_is_computed_from(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Bandwidth(20e9, Summary(20e9, 18e9, 22e9, 7), 2)
    monkeypatch.setattr(coterie.bench.estimate, "measure_bandwidth", lambda _: measured)
    monkeypatch.setattr(coterie.bench.estimate, "last_level_cache", lambda: 0)
    words = " ".join(info(target, "--context", 100).stdout.split())
    for expected in ("tokens/s at most", "20.0 GB/s over", "after 100 tokens", "2 threads, 18.0 to 22.0 in 7 passes"):
        assert expected in words
    assert "may not hold" not in words
    monkeypatch.setattr(coterie.bench.estimate, "last_level_cache", lambda: 2**40)
    assert "the limit may not hold" in " ".join(info(target).stdout.split())
    assert json.loads(info(target, "--json").stdout)["estimate"]["bandwidth_low"] == 18e9
    assert "tokens/s" not in info(target, "--no-measure").stdout


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--bandwidth", "0"), 2),
        (("--bandwidth", "-1"), 2),
        (("--bandwidth", "fast"), 2),
        (("--bandwidth", "nan"), 2),
        (("--bandwidth", "inf"), 5),
        (("--context", "0"), 2),
        (("--context", "513", "--bandwidth", "1"), 5),
        (("--context", str(2**70), "--bandwidth", "1"), 5),
    ],
)
def test_options_out_of_range_are_refused(target: Path, options: tuple[str, ...], code: int) -> None:
    assert info(target, *options).exit_code == code


def test_what_is_not_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    assert info(tmp_path).exit_code == 3
    assert info("no/such/folder").exit_code == 5
    assert json.loads(info(tmp_path, "--json").stdout)["error"]["code"] != "internal"


def test_numbers_are_shortened() -> None:
    assert [count(n) for n in (999, 1_000, 26_100_000, 30_500_000_000)] == ["999", "1.0 K", "26.1 M", "30.5 B"]
    assert [size(n) for n in (512, 8_100_000, 15_600_000_000)] == ["512 B", "8.1 MB", "15.6 GB"]
    assert ranges([0, 1, 2, 4, 6, 7]) == "0-2, 4, 6-7"
    assert ranges([]) == ""
    assert [speed(x) for x in (0.4242, 3.14, 12.4, 12_345.6)] == ["0.42", "3.1", "12", "12,346"]
    assert layers_text([512, 512, None]) == "3: 2 with a window of 512 tokens, 1 with full attention"
