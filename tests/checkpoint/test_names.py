"""Weight-name maps: drops, renames, splits and stacks, and what they refuse."""

import pytest

from coterie.checkpoint import HeadPart, Heads, LayerFormat, NameMap, Rename, Split, Stack
from coterie.checkpoint.names import Source, Target, plan
from coterie.errors import CheckpointError

EXPERTS = Stack(r"(.*)\.experts\.(?P<index>\d+)\.(\w+)", r"\1.switch.\3")
FUSED = Split(r"(.*)\.gate_up", (r"\1.gate", r"\1.up"))


def test_nothing_declared_copies_everything() -> None:
    assert plan(["b", "a"], NameMap()) == [Target("a", (Source("a"),)), Target("b", (Source("b"),))]


def test_the_steps_follow_each_other() -> None:
    name_map = NameMap(
        drops=(r"vision\..*",),
        renames=(Rename(r"model\.(.*)", r"text.\1"), Rename(r"model\.x", "never: the first match wins")),
        splits=(FUSED,),
        stacks=(EXPERTS,),
    )
    names = ["vision.a", "model.x", "lm_head", *(f"model.0.experts.{i}.gate_up" for i in range(11))]
    targets = {target.name: target for target in plan(names, name_map)}
    assert sorted(targets) == ["lm_head", "text.0.switch.gate", "text.0.switch.up", "text.x"]
    up = targets["text.0.switch.up"]
    assert up.stacked
    assert up.sources == tuple(Source(f"model.0.experts.{i}.gate_up", (1, 2, -2)) for i in range(11))


def test_patterns_match_whole_names() -> None:
    name_map = NameMap(drops=("a",), renames=(Rename("b", "c"),))
    assert [target.name for target in plan(["a", "aa", "xa", "bb"], name_map)] == ["aa", "bb", "xa"]


@pytest.mark.parametrize(
    ("indices", "count"),
    [((0, 2), None), ((1, 2), None), ((0, 1), 3), ((0, 1, 2), 2), ((0, 10**12), None), ((10**12,), 2)],
)
def test_gaps_in_a_stack(indices: tuple[int, ...], count: int | None) -> None:
    stack = Stack(EXPERTS.pattern, EXPERTS.template, count)
    with pytest.raises(CheckpointError, match=r"m\.switch\.w: found \d+ tensors") as caught:
        plan([f"m.experts.{i}.w" for i in indices], NameMap(stacks=(stack,)))
    assert caught.value.code == "stack_incomplete"
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("names", "name_map"),
    [
        (["a", "b"], NameMap(renames=(Rename("a", "b"),))),
        (["m.experts.0.w", "m.switch.w"], NameMap(stacks=(EXPERTS,))),
        (["m.experts.0.w", "m.experts.00.w"], NameMap(stacks=(EXPERTS,))),
        (["m.gate_up", "m.up"], NameMap(splits=(FUSED,))),
    ],
)
def test_two_sources_of_one_name(names: list[str], name_map: NameMap) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan(names, name_map)
    assert caught.value.code == "name_collision"
    assert all(name in str(caught.value) for name in names)


def test_formats_by_path() -> None:
    router = LayerFormat(r".*\.gate", bits=8, group_size=64)
    name_map = NameMap(
        unquantized=(r".*\.plain",), overrides=(router, LayerFormat(".*", bits=2)), keep_dtype=(r".*\.bias",)
    )
    assert name_map.override_for("a.gate") is router
    assert name_map.override_for("a.b") == LayerFormat(".*", bits=2)
    assert (name_map.may_quantize("a.plain"), name_map.may_quantize("a.plain.b")) == (False, True)
    assert (name_map.may_cast("a.bias"), name_map.may_cast("a.weight")) == (False, True)
    assert router.entry() == {"bits": 8, "group_size": 64}
    assert LayerFormat("x", mode="mxfp4").entry() == {"mode": "mxfp4"}


HEADS = Heads(
    r"(.*)\.kv",
    (r"\1.keys", r"\1.values"),
    (HeadPart(4, 5, 0, 3, transposed=True), HeadPart(4, 5, 3, 5)),
)


def test_rows_of_heads_become_stacks() -> None:
    targets = plan(["a.kv", "a.q"], NameMap(renames=(Rename(r"a\.(.*)", r"b.\1"),), heads=(HEADS,)))
    assert targets == [
        Target("b.keys", (Source("a.kv", HEADS.parts[0]),)),
        Target("b.q", (Source("a.q"),)),
        Target("b.values", (Source("a.kv", HEADS.parts[1]),)),
    ]
    assert [part.shape(7) for part in HEADS.parts] == [(4, 7, 3), (4, 2, 7)]
