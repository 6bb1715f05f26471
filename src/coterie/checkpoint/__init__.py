"""Checkpoints on disk: read strictly, written whole or not at all. Nothing in a checkpoint is ever executed."""

from coterie.checkpoint.config import Rope, declared_dtype, per_layer, read_config, rope
from coterie.checkpoint.fields import Fields
from coterie.checkpoint.hub import local_folder
from coterie.checkpoint.names import LayerFormat, NameMap, Rename, Split, Stack
from coterie.checkpoint.quantization import QuantizationRules, rules
from coterie.checkpoint.reader import Checkpoint, open_checkpoint, read_member

__all__ = [
    "Checkpoint",
    "Fields",
    "LayerFormat",
    "NameMap",
    "QuantizationRules",
    "Rename",
    "Rope",
    "Split",
    "Stack",
    "declared_dtype",
    "local_folder",
    "open_checkpoint",
    "per_layer",
    "read_config",
    "read_member",
    "rope",
    "rules",
]
