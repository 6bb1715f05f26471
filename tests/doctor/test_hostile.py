"""Everything that the doctor reads is untrusted: whatever a file says, there is a report, and it is safe to print."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.checkpoint import write_safetensors
from coterie.doctor import RULES, Level, Report, examine
from coterie.doctor.findings import Symptom
from coterie.errors import ArgumentError
from doctor.sick import copy, write_healthy

ESCAPE = "\x1b[2J\u202e\x00\udc80"
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 2**62, 1e308, -0.5, "", "x" * 5000, ESCAPE, [], [[]], [None], [-1], [ESCAPE], [2**62] * 3,
    {}, {"": {}}, {ESCAPE: ESCAPE}, {"mode": ESCAPE, "bits": []}, {"rope_type": [], "factor": ESCAPE, "truncate": {}},
    {"a": {"content": [], "factor": "x"}, "9" * 100: {"content": "x"}},
)  # fmt: skip
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "model.safetensors.index.json",
)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_healthy(tmp_path_factory.mktemp("healthy"))["affine"]
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [0], "bos_token_id": null, "pad_token_id": null, "temperature": 1, "top_k": 1, "top_p": 1}'
    )
    (folder / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {}, "eos_token": "!", "chat_template": [{"name": "default", "template": "x"}]}'
    )
    return folder


def check(report: Report) -> None:
    """Every text is bounded and has no character that steers a terminal."""
    for finding in report.findings:
        for text in (finding.where, finding.found, finding.expected, finding.advice):
            assert text.isprintable()
            assert len(text) < 2500
    json.dumps(report.record(), allow_nan=False)


def changes(folder: Path, file: str) -> Iterator[dict[str, Any]]:
    value = json.loads((folder / file).read_text())
    for key in [*value, "text_config", "rope_scaling", "rope_parameters", "quantization"]:
        for hostile in HOSTILE:
            yield {**value, key: hostile}
    yield from HOSTILE
    yield {**value, ESCAPE: ESCAPE}


@pytest.mark.parametrize("file", FILES)
def test_any_value_of_any_key_gives_a_report(healthy: Path, tmp_path: Path, file: str) -> None:
    folder = copy(healthy, tmp_path / "sick")
    # Every third: the stride and the number of values have no common factor, so each value meets many keys.
    for change in islice(changes(healthy, file), 0, None, 3):
        (folder / file).write_text(json.dumps(change))
        check(examine(folder, values=False))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"{" * 100_000, b'{"a":' * 5000, b'{"a": 1e999}', b"[" + b"9" * 9000 + b"]", b"nul"]
)
@pytest.mark.parametrize("file", [*FILES, "chat_template.json", "chat_template.jinja"])
def test_any_text_gives_a_report(healthy: Path, tmp_path: Path, file: str, content: bytes) -> None:
    folder = copy(healthy, tmp_path / "sick")
    (folder / file).write_bytes(content)
    check(examine(folder, values=False))


def test_any_byte_of_a_header_gives_a_report(healthy: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    folder = copy(healthy, tmp_path / "sick")
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    for _ in range(150):
        at, byte = int(rng.integers(0, 8 + length)), int(rng.integers(0, 256))
        path.write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
        check(examine(folder))


def test_any_bits_of_the_data_give_a_report(healthy: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    folder = copy(healthy, tmp_path / "sick")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for at in rng.integers(start, len(content), 20_000):
        content[at] = int(rng.integers(0, 256))
    path.write_bytes(content)
    check(examine(folder))


def test_names_of_files_cannot_steer(healthy: Path, tmp_path: Path) -> None:
    folder = copy(healthy, tmp_path / "sick")
    for name in ("\x1b[2Jmodel.gguf", "model\u202e.safetensors", "a\nb.incomplete", "\udc80.bin"):
        (folder / name).write_bytes(b"")
    report = examine(folder)
    check(report)
    assert {finding.code for finding in report.findings} == {"file_unused", "download_unfinished", "shard_stray"}


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/passwd", "a/b.safetensors", "\x00.safetensors", ".."])
def test_an_index_cannot_lead_outside(healthy: Path, tmp_path: Path, name: str) -> None:
    folder = copy(healthy, tmp_path / "sick")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    report = examine(folder)
    check(report)
    assert "path_escapes" in {finding.cause for finding in report.findings}


@pytest.mark.parametrize("file", [*FILES, "model.safetensors", "chat_template.jinja"])
def test_special_files_do_not_hang(healthy: Path, tmp_path: Path, file: str) -> None:
    folder = copy(healthy, tmp_path / "sick")
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    check(examine(folder))
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    check(examine(folder))
    (folder / file).unlink()
    (folder / file).mkdir()
    report = examine(folder)
    check(report)
    assert report.findings


def test_thousands_of_shards_are_called_for_in_vain(healthy: Path, tmp_path: Path) -> None:
    folder = copy(healthy, tmp_path / "sick")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors").rename(folder / "model-00001-of-99999.safetensors")
    report = examine(folder)
    check(report)
    assert {finding.code for finding in report.findings} == {"shard_missing"}


def test_odd_shapes_give_a_report(healthy: Path, tmp_path: Path) -> None:
    folder = copy(healthy, tmp_path / "sick")
    odd = {
        "lm_head.weight": np.zeros((), np.uint32),
        "lm_head.scales": np.zeros((0, 3), np.float32),
        "model.norm.weight": np.zeros((2, 0, 5), np.float16),
        "model.layers.0.mlp.gate.weight": np.zeros((8, 128), np.float64),
        "model.layers.0.mlp.gate.scales": np.zeros((8, 0), np.uint8),
        f"model.layers.{'9' * 300}.x": np.zeros(1, np.float32),
    }
    write_safetensors(folder / "model.safetensors", odd)
    (folder / "model.safetensors.index.json").unlink()
    check(examine(folder))


def test_only_a_place_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        examine(tmp_path / "nothing")
    check(examine(tmp_path))


def test_what_a_rule_forgets_to_escape_is_escaped(healthy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(_: object) -> Iterator[Symptom]:
        yield Symptom(ESCAPE, ESCAPE * 1000, "x" * 10_000, "\n")

    rule = RULES["weights_missing"]
    monkeypatch.setitem(RULES, rule.code, replace(rule, check=careless))
    report = examine(healthy, values=False)
    assert [finding.code for finding in report.findings] == [rule.code]
    check(report)


def test_a_huge_index_and_a_huge_config_are_answered_soon(healthy: Path, tmp_path: Path) -> None:
    """Without a bound each of these asks for hours."""
    folder = copy(healthy, tmp_path / "sick")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **{f"key{i}": i for i in range(100_000)}}))
    index = {f"t{i}": f"f{i}.safetensors" for i in range(100_000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    report = examine(folder)
    check(report)
    assert {finding.code for finding in report.findings} >= {"index_refused", "family_refused"}


def test_thousands_of_files_that_are_not_there(healthy: Path, tmp_path: Path) -> None:
    folder = copy(healthy, tmp_path / "sick")
    index = {f"t{i}": f"{'../' * (i % 2)}f{i}.safetensors" for i in range(9000)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    report = examine(folder)
    check(report)
    assert report.count(Level.ERROR) >= 9000
