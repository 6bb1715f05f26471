"""`examine`: gather what can be read, ask every rule, and see whether `coterie.load` would take it."""

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import coterie.doctor.rules  # noqa: F401 - registers every rule
from coterie import bundled
from coterie.checkpoint import local_folder, open_checkpoint
from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Finding, Level, symptom_of
from coterie.doctor.gather import gather
from coterie.doctor.registry import RULES, Rule
from coterie.doctor.values import Progress
from coterie.doctor.wording import plain
from coterie.errors import CoterieError
from coterie.models.families import family_of
from coterie.models.weights import read_weights
from coterie.runtime.chat_template import read_chat_template
from coterie.runtime.tokenizer import read_tokenizer

MAX_FINDINGS = 20
"""Of one code; the rest is counted."""
MAX_TEXT = 1000
_OPTIONAL = ("index", "generation_config", "tokenizer_config")
"""Parts that a checkpoint may do without; what looks at them then has nothing to say."""


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, errors first. omitted: how many more of a code there are. skipped: rules that could not be asked,
    with the parts of the checkpoint that they lack.
    """

    findings: tuple[Finding, ...]
    omitted: dict[str, int]
    skipped: dict[str, list[str]]

    def count(self, level: Level) -> int:
        """Findings of a level, the omitted ones included."""
        levels = {finding.code: finding.level for finding in self.findings}
        shown = Counter(finding.level for finding in self.findings)[level]
        return shown + sum(n for code, n in self.omitted.items() if levels.get(code) is level)

    @property
    def loads(self) -> bool:
        """Does `coterie.load` take it? No finding is an error that it raises."""
        return not any(finding.cause for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "loads": self.loads,
            "errors": self.count(Level.ERROR),
            "warnings": self.count(Level.WARNING),
            "notes": self.count(Level.NOTE),
            "findings": [asdict(finding) for finding in self.findings],
            "omitted": self.omitted,
            "skipped": self.skipped,
        }


def examine(path_or_repo: str | Path | None = None, *, values: bool = True, progress: Progress | None = None) -> Report:
    """Look at a checkpoint (a folder, an id of the hub, or None for the bundled model) and report all that is wrong.

    values: read every float and every scale, too, as `coterie.load` does; False looks at headers and texts only.
    progress: called while values are read. Errors of the library are findings; only a path that is neither a folder
    nor an id raises.
    """
    folder = bundled.path() if path_or_repo is None else local_folder(path_or_repo)
    evidence = gather(folder, values=values, progress=progress)
    with evidence.resources:
        return _judge(evidence)


def _judge(evidence: Evidence) -> Report:
    findings: list[Finding] = []
    omitted: dict[str, int] = {}
    skipped: dict[str, list[str]] = {}
    for rule in RULES.values():
        lacking = evidence.lacks(rule.needs)
        if lacking:
            if not all(part in _OPTIONAL and part not in evidence.refused for part in lacking):
                skipped[rule.code] = lacking
        elif rule.code != "load_refused":
            n_more = _ask(rule, evidence, findings)
            if n_more:
                omitted[rule.code] = n_more
    if not any(finding.level is Level.ERROR for finding in findings):
        _try_to_load(evidence)
        _ask(RULES["load_refused"], evidence, findings)
    order = {level: place for place, level in enumerate(Level)}
    findings.sort(key=lambda finding: order[finding.level])
    return Report(tuple(findings), omitted, skipped)


def _ask(rule: Rule, evidence: Evidence, findings: list[Finding]) -> int:
    """Add the findings of a rule; returns how many more there are."""
    symptoms = rule.check(evidence)
    for symptom in islice(symptoms, MAX_FINDINGS):
        where, found, expected, advice = map(_safe, (symptom.where, symptom.found, symptom.expected, symptom.advice))
        findings.append(Finding(symptom.level or rule.level, rule.code, where, found, expected, advice, symptom.cause))
    return sum(1 for _ in symptoms)


def _safe(text: str) -> str:
    """Names and values of strangers are in it: nothing may steer a terminal or fill it."""
    return plain(text, MAX_TEXT) if len(text) > MAX_TEXT or not text.isprintable() else text


def _try_to_load(evidence: Evidence) -> None:
    """What `coterie.load` does before it computes, but for the values, which rules have looked at."""
    try:
        with open_checkpoint(evidence.folder, scan=False) as checkpoint:
            family = family_of(checkpoint.config)
            architecture = family.architecture(checkpoint.config)
            read_weights(architecture, checkpoint, family.name_map(checkpoint.config).drops)
            read_tokenizer(checkpoint, architecture.vocab_size)
            read_chat_template(checkpoint)
    except CoterieError as error:
        evidence.refuse("load", symptom_of(error, "the checkpoint", evidence.folder))
