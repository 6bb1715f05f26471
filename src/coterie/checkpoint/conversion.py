"""From an unquantised checkpoint, published or already in MLX's names, to MLX's format: names, bytes and config.

The result is what `mlx_lm.convert` writes, tensor for tensor, and it streams: one tensor of the target is in memory.
`layer_plan.py` decides which layers are quantised and how; those that it leaves are in the report, with the reason.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coterie.checkpoint.config import declared_dtype
from coterie.checkpoint.dialect import with_published_keys
from coterie.checkpoint.folder import has_member
from coterie.checkpoint.layer_plan import DTYPES, Planner, Step
from coterie.checkpoint.layouts import BLOCKS_FORMAT, array_of
from coterie.checkpoint.names import LayerFormat, NameMap, plan
from coterie.checkpoint.reader import Checkpoint, open_checkpoint, read_member
from coterie.checkpoint.writer import MAX_SHARD, checked_target, write_streamed
from coterie.errors import ArgumentError, NumericError, UnsupportedError
from coterie.formats import Format
from coterie.formats.codec import quantize

Progress = Callable[[int, int, str], None]
"""Called with bytes of the source that are done, all of them, and the name of the tensor that comes next."""

COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
)
"""Files beside the weights that go along as they are."""

_NO_SCALE = 255
"""The E8M0 byte that stands for NaN."""

_LEFT_OUT_KEYS = ("_name_or_path", "vision_config", "audio_config", "quantization_config")


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What a conversion did. kept: {module path: why it stayed unquantised}. dropped: names of the source left out."""

    n_tensors: int
    n_quantized: int
    n_weights: int
    nbytes: int
    kept: Mapping[str, str]
    dropped: tuple[str, ...]

    @property
    def bits_per_weight(self) -> float:
        """Bits of the target for each weight of the source, scales and biases included."""
        return self.nbytes * 8 / max(1, self.n_weights)


def convert(
    source: str | Path,
    target: str | Path,
    names: Callable[[Mapping[str, Any]], NameMap],
    *,
    quantized: bool = True,
    bits: int | None = None,
    group_size: int | None = None,
    mode: str = "affine",
    overrides: Sequence[LayerFormat] = (),
    dtype: str | None = None,
    max_shard: int = MAX_SHARD,
    force: bool = False,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write the checkpoint `source` (a folder or an id of the hub) to the folder `target` in MLX's format.

    names: the family's map for a config. quantized: False only renames and casts. bits, group_size, mode: the default
    format, None for the mode's own. overrides: formats by module path, the first match wins. dtype: of everything that
    stays a float; None takes the one that the config declares. force: replace an existing target.
    `ArgumentError` for arguments, `UnsupportedError` for a source that is quantised already, `CheckpointError` for a
    damaged source or a full disk; the target is untouched by any of them.
    """
    default = Format.resolve(mode, bits, group_size) if quantized else None
    if dtype is not None and dtype not in DTYPES:
        raise ArgumentError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPES)}", code="dtype")
    for rule in overrides:
        _check_pattern(rule.pattern)
    place = checked_target(target, force=force)
    with open_checkpoint(source, published=True) as checkpoint:
        _check_source(checkpoint, place)
        name_map = names(checkpoint.config)
        planner = Planner(checkpoint, name_map, default, tuple(overrides), dtype or declared_dtype(checkpoint.config))
        steps = planner.steps(plan(checkpoint.infos, name_map))
        planner.check_overrides()
        write_streamed(
            place,
            [step.entries for step in steps],
            _make(checkpoint, steps, progress),
            _target_config(checkpoint.config, default or _packed_format(planner), planner.recorded, dtype),
            extra=_companions(checkpoint.path),
            max_shard=max_shard,
            force=force,
        )
    if progress is not None:
        total = sum(step.nbytes for step in steps)
        progress(total, total, "")
    used = {part.name for step in steps for part in step.target.sources}
    return ConversionReport(
        n_tensors=sum(len(step.entries) for step in steps),
        n_quantized=sum(step.is_matrix for step in steps),
        n_weights=sum(step.n_weights for step in steps),
        nbytes=sum(entry.nbytes for step in steps for entry in step.entries),
        kept=planner.kept,
        dropped=tuple(sorted(set(checkpoint.infos) - used)),
    )


def _make(checkpoint: Checkpoint, steps: Sequence[Step], progress: Progress | None) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of the target, one step after the other."""
    total, done = sum(step.nbytes for step in steps), 0
    for step in steps:
        if progress is not None:
            progress(done, total, step.target.name)
        values = _values(checkpoint, step)
        copied = step.format is None or step.packed_before
        arrays = (values,) if copied or step.format is None else _packed(step.target.name, values, step.format)
        yield from zip((entry.name for entry in step.entries), arrays, strict=True)
        done += step.nbytes


def _packed(name: str, values: np.ndarray, fmt: Format) -> tuple[np.ndarray, ...]:
    """Codes, scales and, for affine, biases."""
    try:
        return tuple(array for array in quantize(values, fmt) if array is not None)
    except NumericError as error:
        raise NumericError(f"{name}: {error}", code=error.code) from error


def _values(checkpoint: Checkpoint, step: Step) -> np.ndarray:
    parts = [array_of(checkpoint.array(source.name), source) for source in step.target.sources]
    array = np.stack(parts) if step.target.stacked else parts[0]
    if step.packed_before and not step.is_matrix and (array == _NO_SCALE).any():
        raise NumericError(
            f"{step.target.name}: found {_NO_SCALE} among the scales, which is no number, expected finite scales; "
            "fetch the checkpoint again",
            code="not_finite",
        )
    if array.dtype == step.dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(step.dtype)
    if not np.isfinite(cast).all():
        raise NumericError(
            f"{step.target.name}: found values of up to {np.abs(array).max():.3g}, expected ones that {step.dtype} can "
            "hold; choose bfloat16 or float32",
            code="dtype_overflow",
        )
    return cast


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ArgumentError(
            f"found the override pattern {pattern!r} ({error}), expected a regular expression for module paths",
            code="pattern",
        ) from error


def _check_source(checkpoint: Checkpoint, target: Path) -> None:
    home, place = checkpoint.path.resolve(), target.resolve()
    if place == home or place.is_relative_to(home) or home.is_relative_to(place):
        raise ArgumentError(
            f"{target}: found the source's own folder ({home}), expected another place; choose one", code="in_place"
        )
    packed = next((name for name in checkpoint.infos if name.endswith(".scales")), None)
    if checkpoint.rules.default is not None or packed is not None:
        raise UnsupportedError(
            f"{checkpoint.path}: found a checkpoint that is quantised already, expected unquantised weights; "
            "quantising twice only loses: take the original",
            code="already_quantized",
        )


def _packed_format(planner: Planner) -> Format | None:
    """The format of what is quantised where nothing else is: that of matrices which were published in it."""
    return BLOCKS_FORMAT if planner.packed_before else None


def _target_config(
    config: dict[str, Any], default: Format | None, recorded: Mapping[str, Any], dtype: str | None
) -> dict[str, Any]:
    result = {key: value for key, value in with_published_keys(config).items() if key not in _LEFT_OUT_KEYS}
    if dtype is not None:
        for section in (result, result.get("text_config")):
            for key in ("torch_dtype", "dtype"):
                if isinstance(section, dict) and section.get(key) is not None:
                    section[key] = dtype
    if default is not None:
        quantization = {"group_size": default.group_size, "bits": default.bits, "mode": default.mode, **recorded}
        result["quantization"] = result["quantization_config"] = quantization
    return result


def _companions(folder: Path) -> dict[str, bytes]:
    found = {name: read_member(folder, name) for name in COPIED if has_member(folder, name)}
    return {name: data for name, data in found.items() if data is not None}
