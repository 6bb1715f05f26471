"""`coterie doctor`: the table, the object, the exit codes, and the page that lists the codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from coterie.cli.app import app
from coterie.doctor import RULES, Finding, Level
from coterie.doctor.registry import codes_table
from doctor.sick import config, copy, fill, settings, text, write_healthy

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_healthy(tmp_path_factory.mktemp("healthy"))["affine"]


@pytest.fixture
def sick(healthy: Path, tmp_path: Path) -> Path:
    return copy(healthy, tmp_path / "sick")


def doctor(*arguments: str | Path, columns: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, ["doctor", *map(str, arguments)])


def test_the_bundled_model_is_healthy() -> None:
    result = doctor("--json", "--strict")
    assert result.exit_code == 0
    record = json.loads(result.stdout)
    assert record["model"] is None
    assert record["healthy"] is record["loads"] is True
    assert record["findings"] == []
    assert record["skipped"] == {}


def test_a_healthy_one_says_so(healthy: Path) -> None:
    result = doctor(healthy)
    assert result.exit_code == 0
    assert "0 errors, 0 warnings, 0 notes; coterie.load takes it" in " ".join(result.stdout.split())


def test_an_error_is_exit_3_and_a_full_record(sick: Path) -> None:
    fill("lm_head.scales", float("nan"), (4, 1))(sick)
    result = doctor("--json", sick)
    assert result.exit_code == 3
    record = json.loads(result.stdout)
    assert (record["healthy"], record["loads"], record["errors"]) == (False, False, 1)
    (finding,) = record["findings"]
    assert finding.keys() == set(Finding.__dataclass_fields__)
    assert (finding["level"], finding["code"], finding["where"]) == ("error", "not_finite", "lm_head.scales")
    assert finding["cause"] == "not_finite"
    assert "[4, 1]" in finding["found"]


def test_a_warning_is_exit_0_and_3_when_strict(sick: Path) -> None:
    text("adapters.safetensors", b"")(sick)
    assert doctor(sick).exit_code == 0
    assert doctor(sick, "--strict").exit_code == 3
    assert json.loads(doctor(sick, "--json", "--strict").stdout)["healthy"] is False


def test_a_note_is_always_exit_0(sick: Path) -> None:
    text("old.bin", b"")(sick)
    assert doctor(sick, "--strict").exit_code == 0


def test_headers_alone(sick: Path) -> None:
    fill("lm_head.scales", float("nan"))(sick)
    result = doctor(sick, "--headers")
    assert result.exit_code == 0
    assert "for want of: values" in " ".join(result.stderr.split())


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_the_table_fits_and_says_what_to_do(sick: Path, columns: int) -> None:
    settings(unheard_of=1)(sick)
    text("adapters.safetensors", b"")(sick)
    result = doctor(sick, columns=columns)
    assert result.exit_code == 3
    assert max(map(len, result.stdout.splitlines())) <= columns
    words = " ".join(result.stdout.split())
    for expected in ("family_refused", "adapter_ignored", "adapters.safetensors", "→ fuse the adapter"):
        assert expected in words
    assert words.index("family_refused") < words.index("adapter_ignored")


def test_names_cannot_steer_the_terminal(sick: Path) -> None:
    (sick / "\x1b[2J\u202e.bin").write_bytes(b"")
    config(lambda value: value.update({"\x1b[2Jkey": 1}))(sick)
    for result in (doctor(sick), doctor(sick, "--json")):
        assert "\x1b" not in result.stdout + result.stderr
        assert "\u202e" not in result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [("no/such/folder",), ("--json", "no/such/folder"), ("",), ("../..", "--json")])
def test_what_is_no_checkpoint_ends_with_a_code(arguments: tuple[str, ...]) -> None:
    result = doctor(*arguments)
    assert result.exit_code in (3, 5)
    assert "Traceback" not in result.output


def test_an_empty_folder_has_findings(tmp_path: Path) -> None:
    record = json.loads(doctor("--json", tmp_path).stdout)
    assert {finding["code"] for finding in record["findings"]} == {
        "config_refused",
        "weights_missing",
        "tokenizer_missing",
    }


def test_the_page_lists_every_code() -> None:
    page = (ROOT / "docs" / "doctor.md").read_text("utf-8")
    assert page.endswith(f"## All codes\n\n{codes_table()}\n"), "run scripts/write_doctor_page.py"


@pytest.mark.parametrize("code", RULES)
def test_every_rule_is_documented(code: str) -> None:
    rule = RULES[code]
    assert rule.text.endswith(".")
    assert "|" not in rule.text
    assert rule.level in Level
