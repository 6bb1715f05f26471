"""Rules about tokens: ids against the embedding's rows, where texts end, and what the files say about both."""

from collections.abc import Iterator
from typing import Any

from coterie.checkpoint.config import CONFIG
from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import Level, Symptom
from coterie.doctor.registry import rule
from coterie.doctor.wording import counted, listed, plain

_FILE = "tokenizer.json"
_GENERATION = "generation_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"


@rule(Level.ERROR)
def tokenizer_missing(evidence: Evidence) -> Iterator[Symptom]:
    """There is no tokenizer.json, the one form of a tokenizer that is read."""
    if _FILE not in evidence.listing:
        advice = "fetch the whole checkpoint, or save the tokenizer as tokenizer.json first"
        yield Symptom(_FILE, "no such file", "a tokenizer beside the weights", advice, cause="tokenizer_missing")


@rule(Level.ERROR)
def tokenizer_refused(evidence: Evidence) -> Iterator[Symptom]:
    """tokenizer.json is damaged, or the tokenizers library does not take it."""
    yield from evidence.refused.get("tokenizer", ())


@rule(Level.ERROR, "tokenizer", "architecture")
def tokenizer_ids(evidence: Evidence) -> Iterator[Symptom]:
    """Tokens have ids beyond the embedding's rows: the tokenizer belongs to another model, or tokens were added to it
    alone."""
    assert evidence.tokenizer is not None
    assert evidence.architecture is not None
    rows = evidence.architecture.vocab_size
    beyond = sorted((i, token) for token, i in evidence.tokenizer.vocabulary().items() if i >= rows)
    if beyond:
        examples = listed([f"{plain(token, 40)} = {i}" for i, token in beyond])
        found = f"{counted(len(beyond), 'token')} beyond the embedding: {examples}"
        advice = "take the tokenizer that belongs to the weights"
        yield Symptom(_FILE, found, f"ids below {rows:,}", advice, cause="tokenizer_ids")


@rule(Level.NOTE, "tokenizer", "architecture")
def embedding_rows_spare(evidence: Evidence) -> Iterator[Symptom]:
    """The embedding has more rows than the tokenizer has tokens. Sizes are often rounded up; the spare ids have no
    text."""
    assert evidence.tokenizer is not None
    assert evidence.architecture is not None
    rows = evidence.architecture.vocab_size
    spare = rows - len({i for i in evidence.tokenizer.vocabulary().values() if i < rows})
    if spare:
        found = f"{spare:,} of {rows:,} rows of the embedding without a token"
        yield Symptom(_FILE, found, "a token for each row", "nothing, unless tokens are missing from the tokenizer")


@rule(Level.WARNING, "tokenizer", "tokenizer_config")
def added_tokens_differ(evidence: Evidence) -> Iterator[Symptom]:
    """tokenizer_config.json gives an added token another id or text than tokenizer.json, and readers take either."""
    assert evidence.tokenizer is not None
    stated = (evidence.tokenizer_config or {}).get("added_tokens_decoder")
    if not isinstance(stated, dict):
        return
    vocabulary = evidence.tokenizer.vocabulary()
    differing = []
    for key, token in stated.items():
        text = token.get("content") if isinstance(token, dict) else None
        if isinstance(text, str) and (not key.isdecimal() or vocabulary.get(text) != int(key[:18])):
            differing.append(f"{plain(text, 40)} = {plain(key, 20)}, not {vocabulary.get(text, 'in tokenizer.json')}")
    if differing:
        advice = "fetch both files again, together"
        found = f"{counted(len(differing), 'added token')} that differ: {listed(differing)}"
        yield Symptom(_TOKENIZER_CONFIG, found, f"the same ids as {_FILE}", advice)


@rule(Level.NOTE, "tokenizer_definition")
def tokenizer_truncates(evidence: Evidence) -> Iterator[Symptom]:
    """tokenizer.json asks for truncation or padding. Here it is not done; readers that do it shorten prompts in
    silence."""
    for key in ("truncation", "padding"):
        value = (evidence.tokenizer_definition or {}).get(key)
        if value is not None:
            advice = f"set {key} to null in {_FILE}"
            yield Symptom(f"{_FILE}: {key}", plain(str(value), 80), "null", advice)


@rule(Level.ERROR)
def generation_config_refused(evidence: Evidence) -> Iterator[Symptom]:
    """generation_config.json or tokenizer_config.json is not a JSON object."""
    yield from evidence.refused.get("generation_config", ())
    yield from evidence.refused.get("tokenizer_config", ())


@rule(Level.ERROR, "config", "tokenizer")
def eos_missing(evidence: Evidence) -> Iterator[Symptom]:
    """No file says which token ends a text."""
    refused = {"generation_config", "tokenizer_config"} & evidence.refused.keys()
    if not refused and not any(value is not None for _, value in _stated(evidence, "eos")) and _named(evidence) is None:
        found, expected = "no end-of-text token", "eos_token_id, or eos_token in tokenizer_config.json"
        advice = "add the one that the model was trained with"
        yield Symptom(f"{CONFIG}: eos_token_id", found, expected, advice, cause="eos_missing")


@rule(Level.WARNING, "architecture")
def token_id_range(evidence: Evidence) -> Iterator[Symptom]:
    """The id of a special token is not one of the embedding's rows. An error for the one that ends texts."""
    assert evidence.architecture is not None
    rows = evidence.architecture.vocab_size
    for name in ("eos", "bos", "pad"):
        sources = [(where, value) for where, value in _stated(evidence, name) if value is not None]
        for place, (where, value) in enumerate(sources):
            ids = value if isinstance(value, list) else [value]
            if ids and all(type(i) is int and 0 <= i < rows for i in ids):
                continue
            is_used = name == "eos" and place == 0
            level, cause = (Level.ERROR, "eos_ids") if is_used else (None, None)
            expected = f"ids from 0 to {rows - 1}"
            yield Symptom(where, plain(str(value), 60), expected, "correct the id, or set it to null", level, cause)


@rule(Level.WARNING, "config", "generation_config")
def special_ids_differ(evidence: Evidence) -> Iterator[Symptom]:
    """generation_config.json and config.json name different tokens to begin, to end or to pad a text. Ids that
    generation_config.json adds to those of config.json are fine."""
    for name in ("eos", "bos", "pad"):
        (where, first), *others = _stated(evidence, name)
        for other, value in others:
            if first is None or value is None or _ids(value) <= _ids(first):
                continue
            found, expected = f"{plain(str(first), 60)}", f"{plain(str(value), 60)}, as in {other}"
            advice = f"keep the true one in both; Coterie follows {_GENERATION}"
            yield Symptom(where, found, expected, advice)


@rule(Level.WARNING, "config", "tokenizer", "tokenizer_config")
def eos_token_differs(evidence: Evidence) -> Iterator[Symptom]:
    """The tokenizer's end-of-text token is not among the ids that end a text: readers stop at different places."""
    named = _named(evidence)
    stated = [(where, value) for where, value in _stated(evidence, "eos") if value is not None]
    if named is not None and stated and named not in _ids(stated[0][1]):
        where, value = stated[0]
        expected = f"{named} among them, the eos_token of {_TOKENIZER_CONFIG}"
        yield Symptom(where, plain(str(value), 60), expected, "add the id if the model was trained to end with it")


@rule(Level.WARNING, "generation_config")
def sampling_absurd(evidence: Evidence) -> Iterator[Symptom]:
    """generation_config.json recommends sampling settings that cannot be meant."""
    settings = evidence.generation_config or {}
    bounds = {
        "temperature": (0, 100),
        "top_p": (1e-9, 1),
        "min_p": (0, 1),
        "top_k": (0, 2**31),
        "repetition_penalty": (1e-3, 100),
    }
    for key, (low, high) in bounds.items():
        value = settings.get(key)
        if value is not None and not (type(value) in (int, float) and low <= value <= high):
            expected = f"a number from {low:g} to {high:g}"
            yield Symptom(f"{_GENERATION}: {key}", plain(str(value), 60), expected, "correct it, or set your own")


def _stated(evidence: Evidence, name: str) -> list[tuple[str, Any]]:
    """(place, value) of `<name>_token_id`, in the order in which places count."""
    key = f"{name}_token_id"
    places = [(f"{_GENERATION}: {key}", (evidence.generation_config or {}).get(key))]
    return places + [(f"{CONFIG}: {prefix}{key}", section.get(key)) for prefix, section in evidence.sections]


def _ids(value: Any) -> set[int]:
    return {i for i in (value if isinstance(value, list) else [value]) if type(i) is int}


def _named(evidence: Evidence) -> int | None:
    """The id of `eos_token` in tokenizer_config.json."""
    assert evidence.tokenizer is not None
    named = (evidence.tokenizer_config or {}).get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    return evidence.tokenizer.id_of(named) if isinstance(named, str) else None
