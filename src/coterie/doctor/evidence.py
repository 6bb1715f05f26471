"""What can be read of a checkpoint, each part on its own: what fails is kept as an error, and the rest is read anyway.

A part is None (or empty) where it could not be read; rules name the parts that they need.
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from coterie.checkpoint.folder import INDEX
from coterie.checkpoint.quantization import QuantizationRules
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.checkpoint.stored import StoredTensors
from coterie.doctor.findings import Symptom, symptom_of
from coterie.doctor.values import Values
from coterie.errors import CoterieError
from coterie.models.architecture import Architecture
from coterie.models.family import Family
from coterie.models.weights import Slot, slots
from coterie.runtime.tokenizer import Tokenizer

QUANTIZATION_KEYS = ("quantization", "quantization_config")
"""The names under which config.json declares a quantisation, MLX's own first."""
_SETTINGS = ("group_size", "bits", "mode", "global_scale", "quantize_input")


@dataclass(slots=True)
class Evidence:
    """Everything that rules look at. `gather.py` fills it.

    listing: names in the folder. wanted: {weight file: who names it}. index: {tensor: file} as the index says. files:
    the weight files that are sound. weights: all tensors, where every wanted file is sound; `tensors` has at least the
    sound ones. refused: what could not be read, by stage.
    """

    folder: Path
    listing: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    quantization: QuantizationRules | None = None
    family: Family | None = None
    architecture: Architecture | None = None
    wanted: dict[str, str] = field(default_factory=dict)
    index: dict[str, str] | None = None
    index_total: Any = None
    files: dict[str, SafetensorsFile] = field(default_factory=dict)
    tensors: StoredTensors | None = None
    weights: StoredTensors | None = None
    values: Values | None = None
    tokenizer_definition: dict[str, Any] | None = None
    tokenizer: Tokenizer | None = None
    tokenizer_config: dict[str, Any] | None = None
    generation_config: dict[str, Any] | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    refused: dict[str, list[Symptom]] = field(default_factory=dict)
    resources: ExitStack = field(default_factory=ExitStack)

    def attempt(self, stage: str, where: str) -> "_Attempt":
        """An error of the library inside the block becomes a symptom of this stage, and the examination goes on."""
        return _Attempt(self, stage, where)

    def refuse(self, stage: str, symptom: Symptom) -> None:
        """Keep what could not be read."""
        self.refused.setdefault(stage, []).append(symptom)

    def lacks(self, needs: Iterable[str]) -> list[str]:
        """The parts out of `needs` that are not there."""
        return [need for need in needs if getattr(self, need) is None]

    @property
    def sections(self) -> list[tuple[str, Mapping[str, Any]]]:
        """(prefix, object) of config.json and of its text_config: where settings of the decoder may stand."""
        config = self.config or {}
        nested = config.get("text_config")
        return [("", config), ("text_config.", nested)] if isinstance(nested, dict) else [("", config)]

    @property
    def slots(self) -> list[Slot]:
        """Every weight that the architecture asks for; needs `architecture`."""
        assert self.architecture is not None
        return list(slots(self.architecture, () if self.weights is None else self.weights.infos))

    @property
    def drops(self) -> tuple[str, ...]:
        """Patterns of tensors that are no part of the decoder; needs `family` and `config`."""
        assert self.family is not None
        assert self.config is not None
        return self.family.name_map(self.config).drops

    def is_dropped(self, name: str) -> bool:
        """Is the tensor no part of the decoder (a vision tower)? Needs `family` and `config`."""
        return any(re.fullmatch(pattern, name) for pattern in self.drops)

    @property
    def entries(self) -> dict[str, Any]:
        """The quantisation's entries for single layers, as config.json has them."""
        for _, section in self.sections:
            for key in QUANTIZATION_KEYS:
                declared = section.get(key)
                if isinstance(declared, dict):
                    return {path: entry for path, entry in declared.items() if path not in _SETTINGS}
        return {}

    def setting(self, key: str) -> tuple[str, Any]:
        """(name with its section, value) of a key of config.json, from the decoder's own section where it has one."""
        for prefix, section in reversed(self.sections):
            if section.get(key) is not None:
                return prefix + key, section[key]
        return key, None

    @property
    def index_name(self) -> str:
        """The file that says which tensor lies where."""
        return INDEX


class _Attempt:
    def __init__(self, evidence: Evidence, stage: str, where: str) -> None:
        self._evidence, self._stage, self._where = evidence, stage, where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        if not isinstance(error, CoterieError):
            return False
        self._evidence.refuse(self._stage, symptom_of(error, self._where, self._evidence.folder))
        return True
