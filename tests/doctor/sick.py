"""A small healthy checkpoint, and the tools to break one thing in a copy of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cli.sources import byte_tokenizer, write_source
from coterie.checkpoint import convert, open_checkpoint, write_checkpoint, write_safetensors
from coterie.models.families import family_of

Break = Callable[[Path], None]
FORMATS: dict[str, dict[str, Any]] = {
    "affine": {"bits": 4, "group_size": 64},
    "mxfp4": {"mode": "mxfp4"},
    "plain": {"quantized": False},
}
ROUTER = "model.layers.0.mlp.gate"
EXPERTS = "model.layers.0.mlp.switch_mlp.up_proj"


def write_healthy(folder: Path) -> dict[str, Path]:
    """A checkpoint in each of the formats, below `folder`; all rows of the embedding have a token."""
    source = write_source(folder / "source")
    made = {}
    for name, options in FORMATS.items():
        made[name] = folder / name
        convert(source, made[name], lambda config: family_of(config).name_map(config), **options)
    return made


def copy(healthy: Path, target: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(healthy, target))


def config(change: Callable[[dict[str, Any]], object], file: str = "config.json") -> Break:
    """Change a JSON file in place; it begins as an empty object where it is not there."""

    def apply(folder: Path) -> None:
        path = folder / file
        value = json.loads(path.read_text()) if path.exists() else {}
        change(value)
        path.write_text(json.dumps(value))

    return apply


def settings(file: str = "config.json", **values: Any) -> Break:
    """Set keys of a JSON file."""
    return config(lambda value: value.update(values), file)


def quantization(change: Callable[[dict[str, Any]], object]) -> Break:
    """Change what config.json declares, under both names alike."""

    def both(value: dict[str, Any]) -> None:
        change(value["quantization"])
        value["quantization_config"] = value["quantization"]

    return config(both)


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Break:
    """Change the tensors by name, and write them as they are then."""

    def apply(folder: Path) -> None:
        with open_checkpoint(folder, scan=False) as checkpoint:
            held = {name: np.array(array) for name, array in checkpoint.tensors.items()}
        change(held)
        write_safetensors(folder / "model.safetensors", held)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)

    return apply


def fill(name: str, value: float, rows: Any = ...) -> Break:
    """Set rows of one tensor to a value."""
    return tensors(lambda held: held[name].__setitem__(rows, value))


def text(name: str, content: str | bytes) -> Break:
    """Write a file."""
    return lambda folder: (
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content) and None
    )


def tokenizer(change: Callable[[Any], object], definition: Callable[[dict[str, Any]], object] = len) -> Break:
    """Another tokenizer: `change` works on the library's object, `definition` on the JSON that it saves."""

    def apply(folder: Path) -> None:
        made = byte_tokenizer()
        change(made)
        made.save(str(folder / "tokenizer.json"))
        config(definition, "tokenizer.json")(folder)

    return apply


def in_shards(change: Callable[[Path], object]) -> Break:
    """Write the checkpoint again in three shards or so, then break it."""

    def apply(folder: Path) -> None:
        with open_checkpoint(folder, scan=False) as checkpoint:
            held = {name: np.array(array) for name, array in checkpoint.tensors.items()}
            described = dict(checkpoint.config)
        extra = {"tokenizer.json": (folder / "tokenizer.json").read_bytes()}
        write_checkpoint(
            folder, held, described, extra=extra, max_shard=sum(a.nbytes for a in held.values()) // 2, force=True
        )
        change(folder)

    return apply


def shards(folder: Path) -> list[Path]:
    """The files of weights, sorted."""
    return sorted(folder.glob("model*.safetensors"))


def every(*breaks: Break) -> Break:
    """All of these."""

    def apply(folder: Path) -> None:
        for one in breaks:
            one(folder)

    return apply
