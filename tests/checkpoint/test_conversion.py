"""Conversion: names, bytes and config equal mlx-lm's own conversion, and what cannot be converted is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.arrays import bfloat16
from coterie.checkpoint import LayerFormat, NameMap, Split, Stack, convert, open_checkpoint, write_checkpoint
from coterie.errors import ArgumentError, CheckpointError, NumericError, UnsupportedError
from coterie.formats import Packed
from coterie.models.families import FAMILIES
from models import tiny

SOURCES = {
    ("qwen3_moe", "bfloat16"),
    ("qwen3_moe_tied", "float32"),
    ("gemma4", "bfloat16"),
    ("gemma4_text", "float16"),
    ("gemma4_per_layer", "bfloat16"),
    ("gemma4_unified", "bfloat16"),
    ("deepseek_v2", "float32"),
    ("deepseek_v3", "bfloat16"),
}
FORMATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "4 bits": {"bits": 4},
    "4 bits g128": {"bits": 4, "group_size": 128},
    "3 bits g32": {"bits": 3, "group_size": 32},
    "mxfp4": {"mode": "mxfp4"},
    "mxfp8": {"mode": "mxfp8"},
    "nvfp4": {"mode": "nvfp4"},
}


@pytest.fixture(scope="module", params=sorted(SOURCES), ids=lambda source: "-".join(source))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint as transformers writes it."""
    name, dtype = request.param
    folder = tmp_path_factory.mktemp(name) / "source"
    tiny.save_source(tiny.MODELS[name], folder, dtype=dtype)
    return folder


def ours(source: Path, target: Path, **options: Any) -> dict[str, str]:
    """Convert with the family's map; the report's list of what stayed unquantised."""
    model_type = json.loads((source / "config.json").read_text())["model_type"]
    return dict(convert(source, target, FAMILIES[model_type].name_map, **options).kept)


def theirs(source: Path, target: Path, options: dict[str, Any]) -> Path:
    """Convert with mlx-lm."""
    names = {"bits": "q_bits", "group_size": "q_group_size", "mode": "q_mode", "quant_predicate": "quant_predicate"}
    quantize = {"quantize": True, **{names[key]: value for key, value in options.items()}} if options else {}
    tiny.convert(source, target, quantize)
    return target


def assert_same(found: Path, expected: Path, *, quantization: bool = True) -> None:
    """The same names, dtypes, shapes and bytes, and the same `quantization` in config.json."""
    with open_checkpoint(found) as a, open_checkpoint(expected) as b:
        assert a.names == b.names
        for name in a.names:
            assert (a.tensors[name].dtype, a.tensors[name].shape) == (b.tensors[name].dtype, b.tensors[name].shape)
            assert a.tensors[name].tobytes() == b.tensors[name].tobytes(), name
        for key in ("quantization", "quantization_config") if quantization else ():
            assert a.config.get(key) == b.config.get(key)


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_bytes_as_mlx_lm(name: str, source: Path, tmp_path: Path) -> None:
    options = FORMATS[name]
    kept = ours(source, tmp_path / "ours", quantized=bool(options), **options)
    assert_same(tmp_path / "ours", theirs(source, tmp_path / "theirs", options))
    # 128 does not divide widths of 64 and 192, which all but the tiny Qwens have.
    assert bool(kept) == (name == "4 bits g128" and "qwen" not in str(source))
    assert all("groups of 128" in reason for reason in kept.values())


def test_mixed_formats_through_overrides(source: Path, tmp_path: Path) -> None:
    expected = theirs(source, tmp_path / "theirs", {"quant_predicate": "mixed_4_6", "group_size": 64})
    entries = json.loads((expected / "config.json").read_text())["quantization"]
    rules = [LayerFormat(re.escape(path), **entry) for path, entry in entries.items() if isinstance(entry, dict)]
    assert len({rule.bits for rule in rules}) == 2
    ours(source, tmp_path / "ours", overrides=rules)
    assert_same(tmp_path / "ours", expected)


def test_another_dtype(source: Path, tmp_path: Path) -> None:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    tiny.convert(source, tmp_path / "theirs", {"quantize": True, "dtype": "bfloat16"})
    ours(source, tmp_path / "ours", dtype="bfloat16")
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config.get("dtype", config.get("text_config", {}).get("dtype")) == "bfloat16"


def test_many_shards_and_the_files_beside(source: Path, tmp_path: Path) -> None:
    ours(source, tmp_path / "one")
    ours(source, tmp_path / "many", max_shard=200_000)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert_same(tmp_path / "many", tmp_path / "one")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "many" / name).read_bytes() == (source / name).read_bytes()
    with open_checkpoint(tmp_path / "many") as checkpoint:
        assert all(checkpoint.tensors[name].flags.aligned for name in checkpoint.names)


def test_a_converted_checkpoint_is_not_converted_again(source: Path, tmp_path: Path) -> None:
    ours(source, tmp_path / "once")
    with pytest.raises(UnsupportedError) as caught:
        ours(tmp_path / "once", tmp_path / "twice")
    assert caught.value.code == "already_quantized"
    assert not (tmp_path / "twice").exists()
    ours(source, tmp_path / "renamed", quantized=False)
    ours(tmp_path / "renamed", tmp_path / "later")
    assert_same(tmp_path / "later", tmp_path / "once")


# What needs no family ---------------------------------------------------------------------------------

CONFIG = {"model_type": "x", "torch_dtype": "float32"}


def small(folder: Path, **tensors: np.ndarray) -> Path:
    """An unquantised checkpoint with one matrix "m", and more."""
    content = {"m.weight": np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128)}
    write_checkpoint(folder, content | {name.replace("_", "."): array for name, array in tensors.items()}, CONFIG)
    return folder


def test_progress_and_report(tmp_path: Path) -> None:
    source = small(tmp_path / "a", odd_weight=np.ones((2, 100), np.float32), norm_weight=np.ones(4, np.float32))
    seen: list[tuple[int, int, str]] = []
    report = convert(
        source,
        tmp_path / "b",
        lambda config: NameMap(drops=("norm.weight",) if config["model_type"] == "x" else ()),
        progress=lambda *step: seen.append(step),
    )
    assert [name for _, _, name in seen] == ["m.weight", "odd.weight", ""]
    assert [done for done, _, _ in seen] == [0, 1024, 1824]
    assert {total for _, total, _ in seen} == {1824}
    assert report.kept == {"odd": "100 inputs are not divisible by groups of 64"}
    assert report.dropped == ("norm.weight",)
    assert (report.n_tensors, report.n_quantized, report.n_weights) == (4, 1, 456)
    assert report.nbytes == 128 + 2 * 16 + 800
    assert report.bits_per_weight == pytest.approx(report.nbytes * 8 / 456)


def test_who_decides_about_a_layer(tmp_path: Path) -> None:
    weight = np.ones((2, 96), np.float32)
    source = small(tmp_path / "a", a_weight=weight, b_weight=weight, c_weight=weight, d_weight=weight)
    name_map = NameMap(unquantized=("a",), overrides=(LayerFormat("[bm]", bits=8, group_size=32),))
    report = convert(
        source,
        tmp_path / "b",
        lambda _: name_map,
        group_size=64,
        overrides=(LayerFormat("c", bits=2, group_size=32), LayerFormat("m", quantized=False)),
    )
    with open_checkpoint(tmp_path / "b") as checkpoint:
        kinds = {path: checkpoint.packed(path, 128 if path == "m" else 96) for path in "abcdm"}
        assert checkpoint.config["quantization"] == {
            "group_size": 64, "bits": 4, "mode": "affine", "c": {"group_size": 32, "bits": 2},
        }  # fmt: skip
    packed = {path: kind.format.bits for path, kind in kinds.items() if isinstance(kind, Packed)}
    assert packed == {"c": 2}
    assert set(report.kept) == {"b", "d", "m"}


def test_keep_dtype_and_dropped_parts_of_the_config(tmp_path: Path) -> None:
    config = {**CONFIG, "vision_config": {"a": 1}, "text_config": {"dtype": "float32"}, "_name_or_path": "/home/x"}
    tensors = {"a.bias": np.ones(3, np.float32), "b.bias": np.ones(3, np.float32), "i": np.ones(3, np.int32)}
    write_checkpoint(tmp_path / "a", tensors, config)
    convert(
        tmp_path / "a", tmp_path / "b", lambda _: NameMap(keep_dtype=("a.bias",)), quantized=False, dtype="bfloat16"
    )
    with open_checkpoint(tmp_path / "b") as checkpoint:
        dtypes = {name: checkpoint.tensors[name].dtype for name in checkpoint.names}
        assert dtypes == {"a.bias": np.float32, "b.bias": bfloat16, "i": np.int32}
        assert checkpoint.config == {"model_type": "x", "torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"bits": 7}, "format"),
        ({"group_size": 48}, "format"),
        ({"mode": "int4"}, "format"),
        ({"mode": "mxfp4", "bits": 8}, "format"),
        ({"dtype": "float64"}, "dtype"),
        ({"overrides": (LayerFormat("m", bits=9),)}, "format"),
        ({"overrides": (LayerFormat("m["),)}, "pattern"),
        ({"overrides": (LayerFormat("nowhere"),)}, "override"),
    ],
)
def test_bad_arguments(options: dict[str, Any], code: str, tmp_path: Path) -> None:
    source = small(tmp_path / "a")
    with pytest.raises(ArgumentError) as caught:
        convert(source, tmp_path / "b", lambda _: NameMap(), **options)
    assert caught.value.code == code
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_targets_that_are_refused(tmp_path: Path) -> None:
    source = small(tmp_path / "a")
    small(tmp_path / "taken")
    for target, code in (
        ("a", "target_exists"),
        ("taken", "target_exists"),
        ("a/b", "in_place"),
        (".", "target_exists"),
    ):
        with pytest.raises(ArgumentError) as caught:
            convert(source, tmp_path / target, lambda _: NameMap())
        assert caught.value.code == code
    for target in ("a", "."):
        with pytest.raises(ArgumentError) as caught:
            convert(source, tmp_path / target, lambda _: NameMap(), force=True)
        assert caught.value.code == "in_place"
    convert(source, tmp_path / "taken", lambda _: NameMap(), force=True)
    assert open_checkpoint(tmp_path / "taken").config["quantization"]["bits"] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "taken"]


@pytest.mark.parametrize(
    ("tensors", "name_map", "error", "code"),
    [
        ({"n.weight": np.full((2, 64), np.nan, np.float32)}, NameMap(), CheckpointError, "not_finite"),
        ({"n.weight": np.full((2, 64), 1e30, np.float32)}, NameMap(), NumericError, "dtype_overflow"),
        (
            {"e.0": np.ones((2, 4), np.float32), "e.1": np.ones((2, 5), np.float32)},
            "stack",
            CheckpointError,
            "stack_shape",
        ),
        ({"e.0": np.ones(4, np.float32), "e.1": np.ones(4, np.float16)}, "stack", CheckpointError, "stack_shape"),
        ({"e.1": np.ones(4, np.float32)}, "stack", CheckpointError, "stack_incomplete"),
        ({"s": np.ones((3, 4), np.float32)}, "split", CheckpointError, "split_shape"),
        ({"s": np.ones(4, np.float32)}, "split", CheckpointError, "split_shape"),
    ],
)
def test_sources_that_do_not_fit(
    tensors: dict[str, np.ndarray], name_map: NameMap | str, error: type[Exception], code: str, tmp_path: Path
) -> None:
    maps = {
        "stack": NameMap(stacks=(Stack(r"e\.(?P<index>\d+)", "e.all"),)),
        "split": NameMap(splits=(Split("s", ("s.a", "s.b")),)),
    }
    write_checkpoint(tmp_path / "a", tensors, CONFIG)
    chosen = maps[name_map] if isinstance(name_map, str) else name_map
    with pytest.raises(error) as caught:
        convert(tmp_path / "a", tmp_path / "b", lambda _: chosen, dtype="float16" if code == "dtype_overflow" else None)
    assert getattr(caught.value, "code", None) == code
    assert next(iter(tensors)).partition(".")[0] in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
