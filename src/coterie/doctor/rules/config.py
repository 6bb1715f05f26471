"""Rules about config.json as a whole: is it read, and do readers of both dialects read the same?"""

from collections.abc import Iterator

from coterie.checkpoint.config import CONFIG
from coterie.checkpoint.dialect import with_published_keys
from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Level, Symptom
from coterie.doctor.registry import rule
from coterie.doctor.wording import listed, plain

_DTYPES = ("float32", "float16", "bfloat16")


@rule(Level.ERROR)
def config_refused(evidence: Evidence) -> Iterator[Symptom]:
    """config.json is missing, damaged, or asks for code of its own."""
    yield from evidence.refused.get("config", ())


@rule(Level.ERROR)
def family_refused(evidence: Evidence) -> Iterator[Symptom]:
    """The family is unknown, or a setting is unknown, absurd or not something that Coterie computes."""
    yield from evidence.refused.get("family", ())


@rule(Level.WARNING, "config", "architecture")
def published_key_missing(evidence: Evidence) -> Iterator[Symptom]:
    """A setting stands only under the name that transformers 5 gives it. Readers of the published names, mlx-lm among
    them, take a default in silence."""
    config = evidence.config or {}
    told = with_published_keys(config)
    for prefix, section in evidence.sections:
        complete = told if not prefix else told["text_config"]
        for key in complete:
            # Which name the number of experts is published under depends on the family, and no reader has a default.
            if key != "num_experts" and section.get(key) is None and complete[key] is not None:
                found = f"no {key}, only its newer spelling"
                advice = f'add "{key}": {plain(str(complete[key]), 60)} to {prefix.rstrip(".") or CONFIG}'
                yield Symptom(f"{CONFIG}: {prefix}{key}", found, plain(str(complete[key]), 60), advice)


@rule(Level.NOTE, "config", "weights")
def dtype_differs(evidence: Evidence) -> Iterator[Symptom]:
    """config.json declares another dtype than the floats have that are stored. Readers that cast to the declared one
    compute something else."""
    key, declared = evidence.setting("dtype")
    if declared is None:
        key, declared = evidence.setting("torch_dtype")
    stored = {
        info.dtype.name
        for file in evidence.files.values()
        for info in file.tensors.values()
        if info.dtype.name in _DTYPES
    }
    if declared in _DTYPES and stored and declared not in stored:
        advice = "correct the key to what the weights are"
        yield Symptom(f"{CONFIG}: {key}", f"{declared}", f"{listed(sorted(stored))}, as stored", advice)
