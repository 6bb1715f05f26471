"""Every rule: a checkpoint that has the fault and is otherwise healthy, and a healthy one without a finding."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coterie.checkpoint import open_checkpoint
from coterie.doctor import RULES, Level, examination, examine
from coterie.doctor.examination import MAX_FINDINGS
from coterie.doctor.gather import gather
from coterie.errors import CheckpointError, CoterieError
from coterie.models.families import FAMILIES, family_of
from coterie.models.weights import read_weights
from coterie.runtime.chat_template import read_chat_template
from coterie.runtime.tokenizer import read_tokenizer
from doctor.faults import FAULTS, NORM, TOGETHER, cast
from doctor.sick import Break, copy, fill, settings, tensors, write_healthy


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_healthy(tmp_path_factory.mktemp("healthy"))


@pytest.mark.parametrize("name", ["affine", "plain"])
def test_a_healthy_checkpoint_has_no_finding(healthy: dict[str, Path], name: str) -> None:
    report = examine(healthy[name])
    assert report.findings == ()
    assert report.skipped == {}
    assert report.loads


@pytest.mark.parametrize(("code", "name", "break_"), FAULTS, ids=[f"{i}-{row[0]}" for i, row in enumerate(FAULTS)])
def test_each_fault_breaks_its_rule_and_no_other(
    healthy: dict[str, Path], tmp_path: Path, code: str, name: str, break_: Break
) -> None:
    folder = copy(healthy[name], tmp_path / "sick")
    break_(folder)
    report = examine(folder)
    usual = {"override_without_mode"} if name == "mxfp4" else set()
    found = {finding.code for finding in report.findings}
    assert code in found, found
    assert found - {code} - usual <= TOGETHER.get(code, set())


def test_every_rule_has_a_fault() -> None:
    assert RULES.keys() - {"load_refused", "tensor_precision"} == {code for code, _, _ in FAULTS}


def test_a_tensor_that_a_family_keeps_in_float32(
    healthy: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES["qwen3_moe"]
    kept = replace(family, name_map=lambda config: replace(family.name_map(config), keep_dtype=(NORM,)))
    monkeypatch.setitem(FAMILIES, "qwen3_moe", kept)
    assert examine(healthy["affine"]).findings == ()
    folder = copy(healthy["affine"], tmp_path / "sick")
    cast(NORM, np.float16)(folder)
    assert [finding.code for finding in examine(folder).findings] == ["tensor_precision"]


def test_what_load_refuses_is_never_called_healthy(healthy: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise CheckpointError("tensors: found a new kind of fault, expected none; wait", code="new_kind")

    monkeypatch.setattr(examination, "read_weights", refuse)
    report = examine(healthy["affine"])
    (finding,) = report.findings
    assert (finding.code, finding.cause, finding.level) == ("load_refused", "new_kind", Level.ERROR)
    assert not report.loads


@pytest.mark.parametrize(("code", "name", "break_"), FAULTS, ids=[f"{i}-{row[0]}" for i, row in enumerate(FAULTS)])
def test_it_agrees_with_load(healthy: dict[str, Path], tmp_path: Path, code: str, name: str, break_: Break) -> None:
    """An error is a refusal, and a refusal is an error, with the code that `coterie.load` gives."""
    del code
    folder = copy(healthy[name], tmp_path / "sick")
    break_(folder)
    report = examine(folder)
    refusal = refusal_of(folder)
    assert report.loads == (refusal is None)
    assert bool(report.count(Level.ERROR)) == (refusal is not None)
    assert refusal is None or refusal in {finding.cause for finding in report.findings}


def refusal_of(folder: Path) -> str | None:
    """The code of the error that `coterie.load` raises before it computes; None where it takes the checkpoint."""
    try:
        with open_checkpoint(folder) as checkpoint:
            family = family_of(checkpoint.config)
            architecture = family.architecture(checkpoint.config)
            read_weights(architecture, checkpoint, family.name_map(checkpoint.config).drops)
            read_tokenizer(checkpoint, architecture.vocab_size)
            read_chat_template(checkpoint)
    except CoterieError as error:
        return error.code
    return None


def test_without_values_nothing_is_said_of_them(healthy: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(healthy["affine"], tmp_path / "sick")
    fill("lm_head.scales", float("nan"))(folder)
    report = examine(folder, values=False)
    assert report.findings == ()
    assert report.skipped["not_finite"] == ["values"]


def test_progress_ends_with_all_bytes(healthy: dict[str, Path]) -> None:
    calls: list[tuple[int, int, str]] = []
    examine(healthy["affine"], progress=lambda *call: calls.append(call))
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1] > 0
    assert all(done <= total for done, total, _ in calls)


def test_many_findings_of_one_kind_are_counted(healthy: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(healthy["affine"], tmp_path / "sick")
    tensors(lambda held: held.update({f"stray{i}": held["lm_head.scales"] for i in range(100)}))(folder)
    report = examine(folder)
    assert len(report.findings) == MAX_FINDINGS
    assert report.omitted == {"tensor_stray": 100 - MAX_FINDINGS}
    assert report.count(Level.ERROR) == 100


def test_several_faults_are_found_at_once(healthy: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(healthy["affine"], tmp_path / "sick")
    broken = ("family_refused", "router_formats", "not_finite", "tokenizer_ids", "eos_missing", "chat_template_refused")
    breaks = {code: break_ for code, name, break_ in FAULTS if name == "affine" and code in broken}
    breaks["family_refused"] = settings(unheard_of=1)
    for break_ in breaks.values():
        break_(folder)
    assert {finding.code for finding in examine(folder).findings} == set(broken)


def test_rules_without_weights_know_the_family(healthy: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(healthy["affine"], tmp_path / "sick")
    (folder / "model.safetensors").write_bytes(b"")
    evidence = gather(folder)
    assert evidence.weights is None
    assert len(evidence.slots) > 10
