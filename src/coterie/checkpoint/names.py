"""Weight names as data: how a family's published names become MLX's names, and which layers are quantised how.

A family declares one `NameMap`, made for one config (so a drop or a stack may depend on, say, the number of layers).
`plan` turns the names of a source checkpoint into an ordered list of `Target`s, each saying what it is made of.
Patterns are regular expressions that must match a whole name; templates are expanded with their groups (`\\1`,
`\\g<name>`).
A source tensor walks through five steps, each seeing the result of the one before:

    1. drops     a match ends the walk: the tensor is not part of the target
    2. renames   the first rule that matches gives the new name; none: the name stays
    3. splits    the first rule that matches cuts the tensor into equal parts along `axis`, one name each;
       heads     or cuts each attention head's rows of a matrix in two, a stack of heads each
    4. stacks    tensors that the same rule gives the same name are stacked along a new first axis, in the order of the
                 group `index`, which must count 0, 1, 2, ... without a gap
    5. whatever is left is copied under its name

A rename or a split may say that the source lies in another `Layout`, which is undone before anything is cut.

Names that are already MLX's match nothing and pass unchanged, so one map serves both kinds of source. Qwen3-MoE:

    NameMap(
        stacks=(Stack(r"(model\\.layers\\.\\d+\\.mlp)\\.experts\\.(?P<index>\\d+)\\.(gate|up|down)_proj\\.weight",
                      r"\\1.switch_mlp.\\3_proj.weight"),),
        overrides=(LayerFormat(r".*\\.mlp\\.gate", bits=8, group_size=64),),
    )
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from coterie.errors import CheckpointError

Layout = Literal["same", "transposed", "mxfp4 blocks"]
"""How a source tensor lies: as in the target; its last two axes exchanged; or bytes [..., groups, 16] of two mxfp4
codes each, the lower half first, which are the target's 32-bit words [..., 4 * groups].
"""


@dataclass(frozen=True, slots=True)
class Rename:
    """A whole name that matches `pattern` becomes `template`."""

    pattern: str
    template: str
    layout: Layout = "same"


@dataclass(frozen=True, slots=True)
class Split:
    """A tensor cut into `len(templates)` equal parts along `axis` (negative axes count from the end).

    in_turn: part i is the entries i, i + n, i + 2n, ... of the axis instead of a run.
    """

    pattern: str
    templates: tuple[str, ...]
    axis: int = -2
    layout: Layout = "same"
    in_turn: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Tensors stacked along a new first axis; `pattern` has a group named `index`, `template` does not use it.

    `count`, where the family knows it, is the number of tensors that must be there.
    """

    pattern: str
    template: str
    count: int | None = None


@dataclass(frozen=True, slots=True)
class HeadPart:
    """Rows `begin` to `end` of each head's `n_rows` rows of a matrix [n_heads * n_rows, K]: [n_heads, end - begin, K],
    or [n_heads, K, end - begin] where `transposed`.
    """

    n_heads: int
    n_rows: int
    begin: int
    end: int
    transposed: bool = False

    def shape(self, inputs: int) -> tuple[int, int, int]:
        """The shape of the part, for K = `inputs`."""
        n = self.end - self.begin
        return (self.n_heads, inputs, n) if self.transposed else (self.n_heads, n, inputs)


@dataclass(frozen=True, slots=True)
class Heads:
    """A matrix that holds rows of all heads becomes one stack of heads for each of `parts`, named by `templates`."""

    pattern: str
    templates: tuple[str, ...]
    parts: tuple[HeadPart, ...]


@dataclass(frozen=True, slots=True)
class LayerFormat:
    """How layers whose module path matches `pattern` are quantised, whatever the rest gets.

    None means affine for `mode`, and the mode's default for the others, never the rest's. `quantized` False: not.
    """

    pattern: str
    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None
    quantized: bool = True

    def entry(self) -> dict[str, int | str]:
        """The layer's entry in config.json's "quantization": only what is set, as mlx-lm writes it."""
        pairs = {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}
        return {key: value for key, value in pairs.items() if value is not None}


@dataclass(frozen=True, slots=True)
class NameMap:
    """A family's names and its quantisation defaults. The module docstring gives the meaning of the first five fields.

    unquantized: module paths that stay as they are although their weight is a matrix (a gate that is a plain array).
    overrides: layers with a format of their own (the router in 8 bits); the first match wins.
    keep_dtype: tensor names that a change of dtype leaves alone (a selection bias that must stay float32).
    """

    drops: tuple[str, ...] = ()
    renames: tuple[Rename, ...] = ()
    splits: tuple[Split, ...] = ()
    heads: tuple[Heads, ...] = ()
    stacks: tuple[Stack, ...] = ()
    unquantized: tuple[str, ...] = ()
    overrides: tuple[LayerFormat, ...] = ()
    keep_dtype: tuple[str, ...] = ()

    def override_for(self, path: str) -> LayerFormat | None:
        """The format that the family prescribes for the module at `path`, or None."""
        return next((rule for rule in self.overrides if re.fullmatch(rule.pattern, path)), None)

    def may_quantize(self, path: str) -> bool:
        """False for a module that the family never quantises."""
        return not any(re.fullmatch(pattern, path) for pattern in self.unquantized)

    def may_cast(self, name: str) -> bool:
        """False for a tensor whose stored dtype is part of the family's numerics."""
        return not any(re.fullmatch(pattern, name) for pattern in self.keep_dtype)


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor of the source, or a part of it: `part` is (i, n, axis), the i-th of n equal ones along `axis`.

    layout and in_turn as in `Split`; the layout is undone first.
    """

    name: str
    part: tuple[int, int, int] | HeadPart | None = None
    layout: Layout = "same"
    in_turn: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the target: a single source as it is, or several `stacked` along a new first axis in this order."""

    name: str
    sources: tuple[Source, ...]
    stacked: bool = False


def plan(names: Iterable[str], name_map: NameMap) -> list[Target]:
    """Targets in the order of their names. `CheckpointError` for two sources of one name and for gaps in a stack."""
    targets: dict[str, Target] = {}
    stacks: dict[str, tuple[Stack, dict[int, Source]]] = {}
    for renamed, source in (piece for name in sorted(names) for piece in _pieces(name, name_map)):
        rule, match = _first_stack(renamed, name_map.stacks)
        if rule is None or match is None:
            _add(targets, Target(renamed, (source,)))
            continue
        name, index = match.expand(rule.template), int(match["index"])
        members = stacks.setdefault(name, (rule, {}))[1]
        if index in members:
            raise _collision(name, members[index].name, source.name)
        members[index] = source
    for name, (rule, members) in stacks.items():
        _add(targets, _stacked(name, members, rule.count))
    return [targets[name] for name in sorted(targets)]


_SAME: Layout = "same"


def _pieces(name: str, name_map: NameMap) -> list[tuple[str, Source]]:
    """(new name, source) for each part of the tensor `name`: one, or as many as a split makes, or none if dropped."""
    if any(re.fullmatch(pattern, name) for pattern in name_map.drops):
        return []
    renamed, layout = name, _SAME
    for rename in name_map.renames:
        match = re.fullmatch(rename.pattern, name)
        if match:
            renamed, layout = match.expand(rename.template), rename.layout
            break
    for split in name_map.splits:
        match = re.fullmatch(split.pattern, renamed)
        if match:
            n, layout = len(split.templates), layout if split.layout == _SAME else split.layout
            return [
                (match.expand(template), Source(name, (i, n, split.axis), layout, split.in_turn))
                for i, template in enumerate(split.templates)
            ]
    for heads in name_map.heads:
        match = re.fullmatch(heads.pattern, renamed)
        if match:
            pairs = zip(heads.templates, heads.parts, strict=True)
            return [(match.expand(template), Source(name, part, layout)) for template, part in pairs]
    return [(renamed, Source(name, layout=layout))]


def _first_stack(name: str, stacks: tuple[Stack, ...]) -> tuple[Stack | None, re.Match[str] | None]:
    for rule in stacks:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return rule, match
    return None, None


def _stacked(name: str, members: dict[int, Source], count: int | None) -> Target:
    expected = len(members) if count is None else count
    missing = [index for index in range(expected) if index not in members]
    if missing or len(members) != expected:
        beyond = sorted(index for index in members if index >= expected)
        raise CheckpointError(
            f"{name}: found {len(members)} tensors to stack, expected the numbers 0 to {expected - 1} "
            f"(missing {missing[:5] or 'none'}, beyond {beyond[:5] or 'none'}); "
            "the checkpoint is incomplete or the config is not its own",
            code="stack_incomplete",
        )
    return Target(name, tuple(members[index] for index in range(expected)), stacked=True)


def _add(targets: dict[str, Target], target: Target) -> None:
    if target.name in targets:
        raise _collision(target.name, targets[target.name].sources[0].name, target.sources[0].name)
    targets[target.name] = target


def _collision(name: str, first: str, second: str) -> CheckpointError:
    return CheckpointError(
        f"{name}: both {first} and {second} would become this tensor, expected one source; remove one of them",
        code="name_collision",
    )
