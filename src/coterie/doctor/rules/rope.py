"""Rules about rotary embeddings: settings that one reader follows and another drops."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.checkpoint.config import CONFIG
from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Level, Symptom
from coterie.doctor.registry import rule
from coterie.doctor.wording import plain

_SECTIONS = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True, slots=True)
class _Dropped:
    """A setting that some readers do not know: the value that they compute with, and what goes wrong."""

    key: str
    taken: tuple[Any, ...]
    consequence: str


_DROPPED = (
    _Dropped("truncate", (True, None), "readers that always round the borders of the ramp turn at other frequencies"),
    _Dropped("attention_factor", (None,), "readers that compute the factor themselves scale attention otherwise"),
    _Dropped("short_mscale", (None,), "readers without it scale attention otherwise"),
    _Dropped("long_mscale", (None,), "readers without it scale attention otherwise"),
)


@rule(Level.WARNING, "config")
def rope_setting_dropped(evidence: Evidence) -> Iterator[Symptom]:
    """A setting of the rotary embedding is one that some readers drop without a word: `truncate`, `attention_factor`,
    `short_mscale`, `long_mscale`, or a `partial_rotary_factor` that stands only among the rope settings. The same file
    then computes other logits there."""
    for where, rope in _ropes(evidence):
        for dropped in _DROPPED:
            value = rope.get(dropped.key)
            if not any(type(value) is type(taken) and value == taken for taken in dropped.taken):
                yield _symptom(f"{where}.{dropped.key}", value, dropped.consequence)
        partial = rope.get("partial_rotary_factor")
        proportional = (rope.get("rope_type") or rope.get("type")) == "proportional"
        if partial not in (None, 1, 1.0) and not proportional and evidence.setting("partial_rotary_factor")[1] is None:
            consequence = "readers that look for it at the top level turn the whole head"
            yield _symptom(f"{where}.partial_rotary_factor", partial, consequence)


@rule(Level.NOTE, "config")
def rope_kind_dropped(evidence: Evidence) -> Iterator[Symptom]:
    """The rotary embedding is scaled (`yarn`, `linear`, `dynamic`, `longrope`, `llama3`). Several readers ignore
    `rope_scaling` in some families, and the text falls apart beyond the original context."""
    for where, rope in _ropes(evidence):
        kind = rope.get("rope_type", rope.get("type"))
        if isinstance(kind, str) and kind not in ("default", "proportional", "none"):
            factor = rope.get("factor")
            found = f"{plain(kind, 40)}" + (f" with factor {plain(str(factor), 40)}" if factor is not None else "")
            advice = "keep it if the model was trained with it, and compare long texts between readers"
            yield Symptom(f"{CONFIG}: {where}", found, "no scaling, which every reader knows", advice)


@rule(Level.WARNING, "config")
def rope_context(evidence: Evidence) -> Iterator[Symptom]:
    """The stated context is longer than the rotary embedding reaches: its original context times its factor."""
    key, context = evidence.setting("max_position_embeddings")
    for where, rope in _ropes(evidence):
        original, factor = rope.get("original_max_position_embeddings"), rope.get("factor", 1.0)
        numbers = all(type(value) in (int, float) for value in (original, factor, context))
        if numbers and context > original * factor:
            expected = f"at most {original * factor:.0f}, as {where} says"
            advice = "correct the context or the factor; texts beyond it degrade without an error"
            yield Symptom(f"{CONFIG}: {key}", f"{context}", expected, advice)


def _ropes(evidence: Evidence) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(key, settings) of every rotary embedding; the second of two spellings that say the same is left out."""
    for prefix, section in evidence.sections:
        for name in _SECTIONS:
            settings = section.get(name)
            if not isinstance(settings, dict):
                continue
            kinds = [(key, value) for key, value in settings.items() if isinstance(value, dict)]
            if kinds:
                yield from ((f"{prefix}{name}.{plain(key, 60)}", value) for key, value in kinds)
            else:
                yield f"{prefix}{name}", settings
            break


def _symptom(where: str, value: Any, consequence: str) -> Symptom:
    advice = f"{consequence}: compare logits before you trust another reader with this file"
    return Symptom(f"{CONFIG}: {where}", plain(str(value), 60), "a setting that every reader knows", advice)
