"""What a rule says: `Symptom`, made by the rule, and `Finding`, the same with the rule's name and level."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from coterie.errors import CoterieError


class Level(StrEnum):
    """How bad it is.

    error: `coterie.load` refuses it, or what it computes is not what was trained. warning: it loads here, but something
    is probably wrong, or other readers compute something else. note: worth knowing, harmless.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that a rule found. `where` is a file, a tensor or a key; `level` overrides the rule's own.

    cause: the code of the error that `coterie.load` raises, where it raises one.
    """

    where: str
    found: str
    expected: str
    advice: str
    level: Level | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A symptom with the code of the rule that found it."""

    level: Level
    code: str
    where: str
    found: str
    expected: str
    advice: str
    cause: str | None = None


def symptom_of(error: CoterieError, where: str, folder: Path) -> Symptom:
    """An error of the library as a symptom: its message taken apart where it has the usual form, whole where not."""
    text = str(error).replace(f"{folder}/", "").removeprefix(f"{folder}: ")
    text = text.removeprefix(f"{where}: ")
    found, separator, rest = text.partition(", expected ")
    if separator:
        expected, _, advice = rest.partition("; ")
    else:
        found, _, advice = text.partition("; ")
        expected = "what `coterie.load` accepts"
    found = found.removeprefix("found ")
    return Symptom(where, found, expected, advice or "fetch the checkpoint again", cause=error.code)
