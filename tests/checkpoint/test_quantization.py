"""Which layer is quantised how: mlx-lm's rules, and a refusal for everything that they leave open."""

from typing import Any

import numpy as np
import pytest

from checkpoint.attacks import CONFIG
from coterie.checkpoint import open_checkpoint, rules, write_checkpoint
from coterie.errors import CheckpointError, ConfigError, CoterieError, UnsupportedError
from coterie.formats import Format

TOP = {"group_size": 64, "bits": 4, "mode": "affine"}
MX = {"group_size": 32, "bits": 4, "mode": "mxfp4"}


def resolve(
    top: dict[str, Any] | None, words: int, groups: int | None, dtype: str = "bfloat16", in_dims: int = 128
) -> Format | None:
    """The format of the module "a.b"."""
    config = {} if top is None else {"quantization": top}
    return rules(config).format_for("a.b", words, groups, None if groups is None else dtype, in_dims)


@pytest.mark.parametrize(
    ("entry", "words", "groups", "dtype", "expected"),
    [
        ({"group_size": 64, "bits": 8}, 32, 2, "bfloat16", Format("affine", 8, 64)),
        ({"group_size": 32, "bits": 8, "mode": "mxfp8"}, 32, 4, "uint8", Format("mxfp8", 8, 32)),
        ({"mode": "nvfp4"}, 16, 8, "uint8", Format("nvfp4", 4, 16)),
        ({"bits": 6}, 24, 2, "float16", Format("affine", 6, 64)),
        ({"group_size": None, "bits": None}, 16, 2, "float32", Format("affine", 4, 64)),
        ({"group_size": None, "bits": 3, "mode": "affine"}, 12, 2, "float32", Format("affine", 3, 64)),
        ({"bits": 4, "global_scale": False}, 16, 2, "float32", Format("affine", 4, 64)),
        (False, 128, None, "", None),
        (True, 16, 4, "uint8", Format("mxfp4", 4, 32)),
    ],
)
def test_an_entry_wins_and_is_complete_in_itself(
    entry: Any, words: int, groups: int | None, dtype: str, expected: Format | None
) -> None:
    """The top level is mxfp4 throughout: a missing mode means affine all the same."""
    assert resolve({**MX, "a.b": entry}, words, groups, dtype) == expected


@pytest.mark.parametrize(
    ("words", "groups", "dtype", "in_dims", "expected"),
    [
        (16, 2, "bfloat16", 128, Format("affine", 4, 64)),
        (32, 4, "bfloat16", 128, Format("affine", 8, 32)),
        (16, 2, "float32", 64, Format("affine", 8, 32)),
        (4, 1, "float16", 128, Format("affine", 1, 128)),
        (20, 4, "float16", 128, Format("affine", 5, 32)),
        (16, 4, "uint8", 128, Format("mxfp4", 4, 32)),
        (32, 4, "uint8", 128, Format("mxfp8", 8, 32)),
        (16, 8, "uint8", 128, Format("nvfp4", 4, 16)),
        (128, None, "", 128, None),
    ],
)
def test_without_an_entry_the_shapes_tell(
    words: int, groups: int | None, dtype: str, in_dims: int, expected: Format | None
) -> None:
    """The third case has the shapes of the first: only the number of inputs tells them apart."""
    for top in (TOP, MX, {"group_size": 128, "bits": 2}):
        assert resolve(top, words, groups, dtype, in_dims) == expected


@pytest.mark.parametrize(
    ("top", "words", "groups", "dtype", "in_dims", "code"),
    [
        ({**TOP, "a.b": {"bits": 4}}, 128, None, "", 128, "scales_missing"),
        ({**TOP, "a.b": False}, 16, 2, "bfloat16", 128, "scales_undeclared"),
        (None, 16, 2, "bfloat16", 128, "quantization_undeclared"),
        ({**TOP, "a.b": {"bits": 8}}, 16, 2, "bfloat16", 128, "packed_width"),
        ({**TOP, "a.b": {"bits": 4, "group_size": 32}}, 16, 2, "bfloat16", 128, "packed_width"),
        ({**TOP, "a.b": {"group_size": 128}}, 12, 1, "bfloat16", 96, "group_size"),
        ({**TOP, "a.b": {"group_size": 64}}, 4, 1, "bfloat16", 32, "group_size"),
        ({**TOP, "a.b": {"bits": 4}}, 16, 2, "uint8", 128, "scale_dtype"),
        ({**TOP, "a.b": {"mode": "mxfp4"}}, 16, 4, "bfloat16", 128, "scale_dtype"),
        (TOP, 28, 2, "bfloat16", 128, "packed_width"),
        (TOP, 36, 2, "bfloat16", 128, "packed_width"),
        (TOP, 16, 3, "bfloat16", 128, "packed_width"),
        (TOP, 17, 2, "bfloat16", 128, "packed_width"),
        (TOP, 16, 2, "bfloat16", 129, "group_size"),
        (TOP, 16, 2, "bfloat16", 0, "packed_width"),
        (TOP, 16, 8, "bfloat16", 128, "packed_width"),
        (TOP, 16, 2, "uint8", 128, "packed_width"),
        (TOP, 0, 0, "uint8", 128, "packed_width"),
        (TOP, 16, 2, "int32", 128, "scale_dtype"),
    ],
)
def test_file_and_config_that_disagree(
    top: dict[str, Any] | None, words: int, groups: int | None, dtype: str, in_dims: int, code: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(top, words, groups, dtype, in_dims)
    assert caught.value.code == code
    for said in ("a.b", "found", "expected", "fetch"):
        assert said in str(caught.value)


ABSURD: list[tuple[dict[str, Any], str]] = [
    *[({"bits": bits}, "quantization_format") for bits in (0, 7, 9, -4, 4.0, "4", True, 2**40)],
    *[({"group_size": size}, "quantization_format") for size in (0, 48, 16, 256, -64, 64.0, "64", True)],
    *[({"mode": mode}, "quantization_format") for mode in ("", "AFFINE", "int4", 4, None, ["affine"])],
    ({"mode": "mxfp4", "bits": 8}, "quantization_format"),
    ({"mode": "nvfp4", "group_size": 32}, "quantization_format"),
    ({"scheme": "x"}, "quantization_key"),
    ({"scheme": None}, "quantization_key"),
    ({"global_scale": True}, "global_scale"),
    ({"quantize_input": True}, "quantize_input"),
]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("changes", "code"), ABSURD)
def test_absurd_declarations(changes: dict[str, Any], code: str, nested: bool) -> None:
    top = {**TOP, "a.b": changes} if nested else {**TOP, **changes}
    with pytest.raises(CoterieError) as caught:
        rules({"quantization": top}, "x/config.json")
    assert isinstance(caught.value, ConfigError | UnsupportedError)
    assert caught.value.code == code
    assert "x/config.json" in str(caught.value)
    assert ("a.b" in str(caught.value)) == nested


@pytest.mark.parametrize("entry", [4, None, "4", [4], 0.5])
def test_entries_that_are_no_format(entry: Any) -> None:
    with pytest.raises(ConfigError, match=r"a\.b.*expected") as caught:
        rules({"quantization": {**TOP, "a.b": entry}})
    assert caught.value.code == "quantization_key"


def test_no_declaration() -> None:
    assert rules({}).default is None
    assert rules({"quantization": None, "quantization_config": None}).default is None
    assert rules({"quantization": {}}).default == Format("affine", 4, 64)


def test_the_two_keys_must_agree() -> None:
    assert rules({"quantization": TOP, "quantization_config": dict(TOP)}).default == Format("affine", 4, 64)
    assert rules({"quantization_config": MX}).default == Format("mxfp4", 4, 32)
    assert rules({"text_config": {"quantization": MX}}).default == Format("mxfp4", 4, 32)
    for other in (MX, {**TOP, "a": False}, {}):
        with pytest.raises(ConfigError) as caught:
            rules({"quantization": TOP, "quantization_config": other})
        assert caught.value.code == "quantization_contradiction"
    with pytest.raises(ConfigError) as caught:
        rules({"quantization": [4]})
    assert caught.value.code == "quantization_type"


METHODS = ["mxfp4", "fp8", "awq", "gptq", "compressed-tensors", "modelopt", "bitnet", "bitsandbytes", 5]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", ["top", "text", "beside"])
def test_other_tools_layouts_are_named(method: Any, place: str) -> None:
    section: dict[str, Any] = {"quantization_config": {"quant_method": method, "bits": 4}}
    if place == "text":
        section = {"text_config": section}
    elif place == "beside":
        section["quantization"] = TOP
    with pytest.raises(UnsupportedError, match="coterie convert") as caught:
        rules(section)
    assert caught.value.code == "quant_method"
    assert str(method) in str(caught.value)


def test_quantized_activations_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="quantize_activations"):
        rules({"quantization": TOP, "quantize_activations": True})


def test_declared_and_absent(tmp_path: Any) -> None:
    """A declaration for a file without a single scale is refused when it is opened, a mixed file is not."""
    plain = {"a.weight": np.ones((2, 64), np.float32)}
    packed = {"b.weight": np.ones((2, 8), np.uint32), "b.scales": np.ones((2, 1), np.float32)}
    config = {**CONFIG, "quantization": TOP}
    write_checkpoint(tmp_path / "mixed", {**plain, **packed, "b.biases": packed["b.scales"]}, config)
    checkpoint = open_checkpoint(tmp_path / "mixed")
    assert isinstance(checkpoint.packed("a", 64), np.ndarray)
    assert checkpoint.packed("b", 64).shape == (2, 64)
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(tmp_path / "absent", plain, config)
    assert caught.value.code == "quantization_absent"
    write_checkpoint(tmp_path / "off", packed, {**CONFIG, "quantization": {**TOP, "vision_tower": False}})
    for unknown in (True, {"bits": 4}):
        with pytest.raises(ConfigError, match="symmetric"):
            write_checkpoint(tmp_path / "unknown", packed, {**CONFIG, "quantization": {**TOP, "symmetric": unknown}})
    write_checkpoint(tmp_path / "undeclared", packed, CONFIG)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "undeclared").packed("b", 64)
    assert caught.value.code == "quantization_undeclared"
