"""Checkpoints on disk: read strictly, written whole or not at all. Nothing in a checkpoint is ever executed."""

from coterie.checkpoint.config import Rope, declared_dtype, per_layer, read_config, rope
from coterie.checkpoint.conversion import ConversionReport, convert
from coterie.checkpoint.fields import Fields
from coterie.checkpoint.hub import local_folder
from coterie.checkpoint.names import HeadPart, Heads, LayerFormat, NameMap, Rename, Split, Stack
from coterie.checkpoint.quantization import QuantizationRules, rules
from coterie.checkpoint.reader import Checkpoint, open_checkpoint, read_member
from coterie.checkpoint.writer import write_checkpoint, write_safetensors

__all__ = [
    "Checkpoint",
    "ConversionReport",
    "Fields",
    "HeadPart",
    "Heads",
    "LayerFormat",
    "NameMap",
    "QuantizationRules",
    "Rename",
    "Rope",
    "Split",
    "Stack",
    "convert",
    "declared_dtype",
    "local_folder",
    "open_checkpoint",
    "per_layer",
    "read_config",
    "read_member",
    "rope",
    "rules",
    "write_checkpoint",
    "write_safetensors",
]
