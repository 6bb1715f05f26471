"""Which tensors a conversion makes: shape, dtype and format of each, decided before the first byte is written.

Which layers are quantised, in this order:

    1. only matrices named `<path>.weight` (stacked experts included) that the family does not keep as they are
    2. the caller's override for the path decides alone: a format of its own, or none
    3. inputs that the default group size does not divide stay unquantised, as in mlx-lm
    4. the family's override (a router in 8 bits), unless its own group size does not divide the inputs
    5. the default format

Matrices that were published in mxfp4 keep their codes, whatever the rest gets.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from coterie.arrays import FLOAT_DTYPES, bfloat16
from coterie.checkpoint.layouts import BLOCKS_FORMAT, shape_and_dtype
from coterie.checkpoint.names import LayerFormat, NameMap, Target
from coterie.checkpoint.quantization import is_in_blocks
from coterie.checkpoint.reader import Checkpoint
from coterie.checkpoint.writer import Entry
from coterie.errors import ArgumentError, CheckpointError, UnsupportedError
from coterie.formats import Format

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": bfloat16}
"""What the tensors that stay floats may be cast to."""


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor to make: its shape and dtype as it is read, and how it is packed.

    packed_before: the source holds codes or scales of `format` already, which are copied.
    """

    target: Target
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    format: Format | None
    entries: tuple[Entry, ...]
    packed_before: bool = False

    @property
    def n_weights(self) -> int:
        """Weights in the tensor; scales have none of their own."""
        if not self.packed_before or self.format is None:
            return prod(self.shape)
        return prod(self.shape) * 32 // self.format.bits if self.is_matrix else 0

    @property
    def is_matrix(self) -> bool:
        """Whether the tensor is a quantised matrix, not the scales of one."""
        return self.format is not None and self.target.name.endswith(".weight")

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor before it is packed."""
        return prod(self.shape) * self.dtype.itemsize


class Planner:
    """Decides shape, dtype and format of each target; `kept` and `recorded` collect what the report and config need."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        name_map: NameMap,
        default: Format | None,
        overrides: tuple[LayerFormat, ...],
        dtype: str | None,
    ) -> None:
        self.checkpoint = checkpoint
        self.name_map = name_map
        self.default = default
        self.overrides = overrides
        self.dtype = None if dtype is None else DTYPES[dtype]
        self.kept: dict[str, str] = {}
        self.recorded: dict[str, dict[str, Any]] = {}
        self.candidates: list[str] = []
        self.packed_before: set[str] = set()

    def steps(self, targets: Sequence[Target]) -> list[Step]:
        """The plans of all tensors of the target, in order."""
        blocks = (item for item in targets if any(part.layout == "mxfp4 blocks" for part in item.sources))
        self.packed_before = {item.name.removesuffix(".weight") for item in blocks}
        entry = LayerFormat("", BLOCKS_FORMAT.bits, BLOCKS_FORMAT.group_size, BLOCKS_FORMAT.mode).entry()
        self.recorded.update(dict.fromkeys(sorted(self.packed_before), entry))
        steps = [self.step(item) for item in targets]
        self._check_packed_before({step.target.name: step for step in steps})
        return steps

    def step(self, target: Target) -> Step:
        """The plan for one tensor of the target."""
        shape, dtype = self._shape_and_dtype(target)
        if self.dtype is not None and dtype in FLOAT_DTYPES and self.name_map.may_cast(target.name):
            dtype = self.dtype
        path, _, leaf = target.name.rpartition(".")
        if path in self.packed_before and leaf in ("weight", "scales"):
            entry = Entry(target.name, dtype, shape)
            return Step(target, shape, dtype, BLOCKS_FORMAT, (entry,), packed_before=True)
        fmt = self._format(path, shape, dtype) if leaf == "weight" and len(shape) >= 2 else None
        if fmt is None:
            return Step(target, shape, dtype, None, (Entry(target.name, dtype, shape),))
        rows, inputs = shape[:-1], shape[-1]
        scale_dtype = dtype if fmt.mode == "affine" else np.dtype(np.uint8)
        scales = Entry(f"{path}.scales", scale_dtype, (*rows, fmt.n_groups(inputs)))
        entries = [Entry(target.name, np.dtype(np.uint32), (*rows, fmt.words(inputs))), scales]
        if fmt.mode == "affine":
            entries.append(replace(scales, name=f"{path}.biases"))
        return Step(target, shape, dtype, fmt, tuple(entries))

    def _check_packed_before(self, steps: Mapping[str, Step]) -> None:
        """Blocks come with scales, and a config that declares them is that of a family which has them."""
        for path in sorted(self.packed_before):
            scales, shape = steps.get(f"{path}.scales"), steps[f"{path}.weight"].shape
            expected = (*shape[:-1], shape[-1] * 32 // BLOCKS_FORMAT.bits // BLOCKS_FORMAT.group_size)
            if scales is None or scales.shape != expected or scales.dtype != np.uint8:
                found = "no scales" if scales is None else f"scales {scales.dtype} {list(scales.shape)}"
                raise CheckpointError(
                    f"{path}: found mxfp4 codes with {found}, expected uint8 {list(expected)}; fetch the checkpoint "
                    "again",
                    code="scales_missing" if scales is None else "scales_shape",
                )
        if is_in_blocks(self.checkpoint.config.get("quantization_config")) and not self.packed_before:
            raise UnsupportedError(
                f"{self.checkpoint.path}: found quant_method = mxfp4 in config.json and no weight in that layout that "
                "this family has; take the unquantised original",
                code="quant_method",
            )

    def check_overrides(self) -> None:
        """After the last step: refuse an override that matches no layer, which would else be a wish unheard."""
        for rule in self.overrides:
            if not any(re.fullmatch(rule.pattern, path) for path in self.candidates):
                examples = ", ".join(self.candidates[:2]) or "none: nothing of this checkpoint is to be quantised"
                raise ArgumentError(
                    f"override {rule.pattern!r} matches no layer; expected a regular expression for a whole path, as "
                    f"'.*down_proj'; layers here are {examples}{', ...' if len(self.candidates) > 2 else ''}",
                    code="override",
                )

    def _shape_and_dtype(self, target: Target) -> tuple[tuple[int, ...], np.dtype[Any]]:
        infos = [self.checkpoint.infos[part.name] for part in target.sources]
        first = infos[0]
        odd = next((info for info in infos if (info.shape, info.dtype) != (first.shape, first.dtype)), None)
        if odd is not None:
            raise CheckpointError(
                f"{target.name}: found {odd.dtype} {list(odd.shape)} in {odd.name}, expected {first.dtype} "
                f"{list(first.shape)} as in {first.name}; experts of one layer have one shape",
                code="stack_shape",
            )
        shape, dtype = shape_and_dtype(first, target.sources[0])
        return ((len(infos), *shape) if target.stacked else shape), dtype

    def _format(self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Format | None:
        if self.default is None or not self.name_map.may_quantize(path):
            return None
        self.candidates.append(path)
        own = next((rule for rule in self.overrides if re.fullmatch(rule.pattern, path)), None)
        if dtype not in FLOAT_DTYPES or (own is not None and not own.quantized):
            self.kept[path] = f"{dtype} is not quantised" if dtype not in FLOAT_DTYPES else "the override says so"
            return None
        rule = own or self.name_map.override_for(path)
        fmt = self.default if rule is None else Format.resolve(rule.mode or "affine", rule.bits, rule.group_size)
        groups = (fmt.group_size,) if own is not None else (self.default.group_size, fmt.group_size)
        for group_size in groups:
            if shape[-1] % group_size:
                self.kept[path] = f"{shape[-1]} inputs are not divisible by groups of {group_size}"
                return None
        if rule is not None:
            self.recorded[path] = rule.entry()
        return fmt
