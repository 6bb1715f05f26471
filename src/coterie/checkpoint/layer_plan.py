"""Which tensors a conversion makes: shape, dtype and format of each, decided before the first byte is written.

Which layers are quantised, in this order:

    1. only matrices named `<path>.weight` (stacked experts included) that the family does not keep as they are
    2. the caller's override for the path decides alone: a format of its own, or none
    3. inputs that the default group size does not divide stay unquantised, as in mlx-lm
    4. the family's override (a router in 8 bits), unless its own group size does not divide the inputs
    5. the default format
"""

import re
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from coterie.arrays import FLOAT_DTYPES, bfloat16
from coterie.checkpoint.names import HeadPart, LayerFormat, NameMap, Target
from coterie.checkpoint.reader import Checkpoint
from coterie.checkpoint.writer import Entry
from coterie.errors import ArgumentError, CheckpointError
from coterie.formats import Format

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": bfloat16}
"""What the tensors that stay floats may be cast to."""


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor to make: its logical shape and dtype, and how it is packed."""

    target: Target
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    format: Format | None
    entries: tuple[Entry, ...]

    @property
    def n_weights(self) -> int:
        """Values in the tensor."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor before it is packed."""
        return self.n_weights * self.dtype.itemsize


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

    def step(self, target: Target) -> Step:
        """The plan for one tensor of the target."""
        shape, dtype = self._shape_and_dtype(target)
        if self.dtype is not None and dtype in FLOAT_DTYPES and self.name_map.may_cast(target.name):
            dtype = self.dtype
        path, _, leaf = target.name.rpartition(".")
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
        shape = list(first.shape)
        part = target.sources[0].part
        if isinstance(part, HeadPart):
            if len(shape) != 2 or shape[0] != part.n_heads * part.n_rows:
                raise CheckpointError(
                    f"{first.name}: found shape {shape}, expected [{part.n_heads * part.n_rows}, ...]: "
                    f"{part.n_rows} rows for each of {part.n_heads} heads; the config is not this checkpoint's",
                    code="split_shape",
                )
            shape = list(part.shape(shape[1]))
        elif part is not None:
            _, n, axis = part
            if not -len(shape) <= axis < len(shape) or shape[axis] % n:
                raise CheckpointError(
                    f"{first.name}: found shape {shape}, expected one that {n} equal parts along axis {axis} make up",
                    code="split_shape",
                )
            shape[axis] //= n
        return ((len(infos), *shape) if target.stacked else tuple(shape)), first.dtype

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
