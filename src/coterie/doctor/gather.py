"""Reading a checkpoint part by part into an `Evidence`, going on where a part fails."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from coterie.checkpoint.config import CODE_KEYS, CONFIG, MAX_CONFIG, read_config
from coterie.checkpoint.folder import INDEX, MAX_INDEX, has_member, member
from coterie.checkpoint.quantization import QuantizationRules, rules
from coterie.checkpoint.reader import MAX_MEMBER, Checkpoint, read_member
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.checkpoint.stored import StoredTensors
from coterie.checkpoint.strict_json import parse, read_object
from coterie.doctor.evidence import Evidence
from coterie.doctor.findings import symptom_of
from coterie.doctor.values import Progress, read_values
from coterie.doctor.wording import plain
from coterie.errors import CheckpointError, ConfigError, CoterieError, UnsupportedError
from coterie.models.architecture import Architecture
from coterie.models.families import family_of
from coterie.models.family import Family
from coterie.runtime.chat_template import MAX_TEMPLATE, read_chat_template
from coterie.runtime.tokenizer import Tokenizer, read_lenient_object

_MAX_LISTED = 10_000
TOKENIZER_CONFIG = "tokenizer_config.json"
_MAX_FILES = 10_000
_MAX_ROUNDS = 8
_MAX_CULPRITS = 20
_NO_BOUND = 2**31 - 1


def gather(folder: Path, *, values: bool = True, progress: Progress | None = None) -> Evidence:
    """Everything that can be read of the checkpoint in `folder`; `values` False leaves the weights' values unread.

    The caller closes `resources` in the end.
    """
    evidence = Evidence(folder)
    with evidence.attempt("file", "the folder"):
        try:
            evidence.listing = tuple(sorted(os.listdir(folder))[:_MAX_LISTED])
        except OSError as error:
            raise CheckpointError(
                f"the folder cannot be listed ({error}); check the path", code="read_error"
            ) from error
    _read_config(evidence)
    _read_family(evidence)
    _find_files(evidence)
    _open_files(evidence)
    _read_texts(evidence)
    if values and evidence.files:
        with evidence.attempt("file", "the weights"):
            evidence.values = read_values(evidence.files.values(), progress)
    return evidence


def _read_config(evidence: Evidence) -> None:
    folder = evidence.folder
    with evidence.attempt("config", CONFIG):
        if not has_member(folder, CONFIG):
            read_config(folder)
        evidence.config = read_object(member(folder, CONFIG), MAX_CONFIG, ConfigError, prefix="config")
    if evidence.config is None:
        return
    refusal = None
    try:
        evidence.quantization = rules(evidence.config, CONFIG)
    except CoterieError as error:
        refusal = error.code
        evidence.refuse("quantization", symptom_of(error, CONFIG, folder))
        evidence.quantization = _first_declared(evidence.config)
    try:
        read_config(folder)
    except CoterieError as error:
        if error.code != refusal:
            evidence.refuse("config", symptom_of(error, CONFIG, folder))


def _first_declared(config: Mapping[str, Any]) -> QuantizationRules | None:
    """What MLX's own key says, where the two keys contradict each other."""
    try:
        return rules({"quantization": config.get("quantization")}) if config.get("quantization") else None
    except CoterieError:
        return None


def _read_family(evidence: Evidence) -> None:
    if evidence.config is None:
        return
    config = {key: value for key, value in evidence.config.items() if key not in CODE_KEYS}
    with evidence.attempt("family", CONFIG):
        evidence.family = family_of(config)
    if evidence.family is None:
        return
    for _ in range(_MAX_ROUNDS):
        try:
            evidence.architecture = evidence.family.architecture(config)
            return
        except (ConfigError, UnsupportedError) as error:
            evidence.refuse("family", symptom_of(error, CONFIG, evidence.folder))
            relaxed = _without_culprit(config, evidence.family, error)
            if relaxed is None:
                return
            config = relaxed


def _without_culprit(config: dict[str, Any], family: Family, error: CoterieError) -> dict[str, Any] | None:
    """The config without the one key that is unknown or unsupported, so that the tensors can be looked at, too."""
    if not (error.code == "unknown_key" or error.code.startswith(("unsupported_", "config_unsupported"))):
        return None
    nested = config.get("text_config")
    places = [(None, key) for key in config if key not in ("model_type", "text_config")]
    places += [("text_config", key) for key in nested] if isinstance(nested, dict) else []  # type: ignore[misc]
    # The message names the key, or the section that it stands in.
    for section, key in [place for place in places if place[1] in str(error)][:_MAX_CULPRITS]:
        relaxed = {name: dict(value) if name == section else value for name, value in config.items()}
        (relaxed if section is None else relaxed[section]).pop(key)
        try:
            found: Architecture | str = family.architecture(relaxed)
        except CoterieError as other:
            found = str(other)
            if other.code == "config_missing" or found == str(error):
                continue
        return relaxed
    return None


def _find_files(evidence: Evidence) -> None:
    folder = evidence.folder
    if INDEX in evidence.listing:
        with evidence.attempt("index", INDEX):
            content = read_object(member(folder, INDEX), MAX_INDEX, CheckpointError, prefix="index")
            metadata = content.get("metadata")
            evidence.index_total = metadata.get("total_size") if isinstance(metadata, dict) else None
            weight_map = content.get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
                weight_map = None
            names = sorted(set(weight_map.values())) if weight_map else []
            if not weight_map or len(names) > _MAX_FILES:
                found = f"{len(names):,} files" if names else "no object that maps tensors to files"
                raise CheckpointError(
                    f"found {found}, expected the shards of a model; fetch the index again", code="index_weight_map"
                )
            evidence.index = weight_map
            evidence.wanted = dict.fromkeys(names, INDEX)
    if evidence.index is None:
        shards = [name for name in evidence.listing if name.startswith("model") and name.endswith(".safetensors")]
        evidence.wanted = dict.fromkeys(shards, "the folder")
        evidence.wanted.update(_siblings(shards))


def _siblings(shards: list[str]) -> dict[str, str]:
    """The shards that the numbers in the names of the others call for, at most as many again as there are."""
    wanted: dict[str, str] = {}
    for name in shards:
        begin, middle, total = name.removesuffix(".safetensors").rpartition("-of-")
        stem, _, number = begin.rpartition("-")
        if middle and number.isdecimal() and total.isdecimal() and len(total) == 5:
            for i in range(1, min(int(total), 2 * len(shards) + 100) + 1):
                wanted.setdefault(f"{stem}-{i:05d}-of-{total}.safetensors", f"the number in {name}")
    return wanted


def _open_files(evidence: Evidence) -> None:
    folder = evidence.folder
    for name in evidence.wanted:
        with evidence.attempt("file", plain(name)):
            path = member(folder, name)
            if has_member(folder, name):
                file = SafetensorsFile(path)
                evidence.resources.callback(file.close)
                evidence.files[name] = file
    if not evidence.files:
        return
    evidence.tensors = StoredTensors(folder, evidence.quantization or QuantizationRules(None, {}))
    for name, file in evidence.files.items():
        with evidence.attempt("twice", name):
            evidence.tensors.add(file)
    if len(evidence.files) == len(evidence.wanted):
        evidence.weights = evidence.tensors


def _read_texts(evidence: Evidence) -> None:
    folder = evidence.folder
    with evidence.attempt("tokenizer", "tokenizer.json"):
        definition = read_member(folder, "tokenizer.json")
        if definition is not None:
            parsed = parse(definition, str(folder / "tokenizer.json"), CheckpointError, prefix="tokenizer")
            evidence.tokenizer_definition = parsed if isinstance(parsed, dict) else None
            evidence.tokenizer = Tokenizer(definition, vocab_size=_NO_BOUND, eos_ids=(), where="tokenizer.json")
    with evidence.attempt("generation_config", "generation_config.json"):
        content = read_member(folder, "generation_config.json")
        if content is not None:
            evidence.generation_config = _object(parse(content, "generation_config.json", ConfigError, prefix="config"))
    # What reads these files asks a checkpoint for nothing but texts, and there is none that is whole here.
    texts = cast(Checkpoint, _Texts(folder))
    with evidence.attempt("tokenizer_config", TOKENIZER_CONFIG):
        if has_member(folder, TOKENIZER_CONFIG):
            evidence.tokenizer_config = read_lenient_object(texts, TOKENIZER_CONFIG)
    if "tokenizer_config" not in evidence.refused:
        with evidence.attempt("chat_template", "chat_template.jinja"):
            read_chat_template(texts)
    if "chat_template" not in evidence.refused:
        with evidence.attempt("other_template", "chat_template.json"):
            _read_templates(evidence)


class _Texts:
    """A folder whose texts can be read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read_member(self, name: str, limit: int = MAX_MEMBER) -> bytes | None:
        """As `Checkpoint.read_member`."""
        return read_member(self.path, name, limit)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError("found no JSON object, expected one; fetch the file again", code="config_type")
    return value


def _read_templates(evidence: Evidence) -> None:
    """The default chat template from each place where readers look for it."""
    name = "chat_template.jinja"
    content = read_member(evidence.folder, name, MAX_TEMPLATE)
    if content is not None:
        evidence.chat_templates[name] = content.decode("utf-8", errors="replace")
    older = read_member(evidence.folder, "chat_template.json", MAX_TEMPLATE)
    legacy = {} if older is None else _object(parse(older, "chat_template.json", ConfigError, prefix="config"))
    for file, fields in ((TOKENIZER_CONFIG, evidence.tokenizer_config or {}), ("chat_template.json", legacy)):
        described = fields.get("chat_template")
        if isinstance(described, list):
            named = [item for item in described if isinstance(item, dict) and item.get("name") == "default"]
            described = named[0].get("template") if named else None
        if isinstance(described, str):
            evidence.chat_templates[file] = described
