"""The rules by name. A rule is a function of the evidence; its name is the code, its docstring the documentation."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Level, Symptom

Check = Callable[[Evidence], Iterator[Symptom]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing to look for. `needs` are the parts of the evidence without which it cannot be looked for."""

    code: str
    level: Level
    needs: tuple[str, ...]
    check: Check

    @property
    def text(self) -> str:
        """What the rule finds and why it matters, as one line."""
        return re.sub(r"\s+", " ", inspect.getdoc(self.check) or "")


RULES: dict[str, Rule] = {}
"""Every rule by its code, in the order in which findings of one level are listed."""


def rule(level: Level, *needs: str) -> Callable[[Check], Check]:
    """Registers the function below it as a rule; `needs` are names of parts of `Evidence`."""

    def register(check: Check) -> Check:
        code = check.__name__
        assert code not in RULES, f"two rules are called {code}"
        RULES[code] = Rule(code, level, needs, check)
        return check

    return register


def codes_table() -> str:
    """The table of all codes in docs/doctor.md."""
    import coterie.doctor.rules  # noqa: F401 - registers every rule

    rows = [f"| `{rule.code}` | {rule.level} | {rule.text} |" for rule in RULES.values()]
    return "\n".join(["| code | level | what it finds |", "|---|---|---|", *rows])
