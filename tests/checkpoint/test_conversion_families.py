"""Published names and layouts of every family become MLX's, tensor for tensor as mlx-lm converts them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.test_conversion import assert_same, ours, theirs
from coterie.checkpoint import LayerFormat, convert, open_checkpoint
from coterie.errors import ArgumentError, CheckpointError, NumericError, UnsupportedError
from coterie.formats import Format, Packed
from coterie.models.families import family_of
from models import references, tiny

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"quantized": False},
    "4 bits g64": {"bits": 4, "group_size": 64},
    "mxfp4": {"mode": "mxfp4"},
}
NAMES = ["mixtral", "olmoe", "gpt_oss", "gpt_oss_blocks", "glm4_moe"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", OPTIONS)
def test_the_same_bytes_as_mlx_lm(name: str, form: str, tmp_path: Path) -> None:
    ours(tiny.source(name), tmp_path / "ours", **OPTIONS[form])
    assert_same(tmp_path / "ours", tiny.checkpoint(name, form), quantization=name != "gpt_oss_blocks")


def test_a_selection_bias_stays_in_float32(tmp_path: Path) -> None:
    ours(tiny.source("glm4_moe"), tmp_path / "ours", dtype="bfloat16")
    tiny.convert(tiny.source("glm4_moe"), tmp_path / "theirs", {"quantize": True, "dtype": "bfloat16"})
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    with open_checkpoint(tmp_path / "ours") as checkpoint:
        dtypes = {name: str(info.dtype) for name, info in checkpoint.infos.items()}
    assert dtypes["model.layers.1.mlp.gate.e_score_correction_bias"] == "float32"
    assert dtypes["model.layers.1.mlp.gate.weight"] == "bfloat16"


# Experts that were published in mxfp4 ---------------------------------------------------------------------------------

EXPERTS = "model.layers.2.mlp.experts"


def blocks(folder: Path, **changed: Any) -> Path:
    """The tiny gpt-oss in blocks, written anew with tensors changed; None takes one away."""
    with open_checkpoint(tiny.source("gpt_oss_blocks"), published=True) as checkpoint:
        tensors = {name: np.array(checkpoint.tensors[name]) for name in checkpoint.names}
        config = checkpoint.config
    for name, value in changed.items():
        tensors.pop(f"{EXPERTS}.{name}")
        if value is not None:
            tensors[f"{EXPERTS}.{name}"] = value
    write(folder, tensors, config)
    return folder


def write(folder: Path, tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """A checkpoint as other tools write it; ours would refuse these."""
    from safetensors.numpy import save_file

    folder.mkdir()
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("form", OPTIONS)
def test_codes_in_blocks_stay_as_they_are(form: str, tmp_path: Path) -> None:
    ours(tiny.source("gpt_oss_blocks"), tmp_path / "ours", **OPTIONS[form])
    with open_checkpoint(tmp_path / "ours") as checkpoint:
        packed = checkpoint.packed(f"{EXPERTS}.up_proj", 128)
        head = checkpoint.packed("lm_head", 128)
    assert isinstance(packed, Packed)
    assert packed.format == Format.resolve("mxfp4", None, None)
    assert isinstance(head, Packed) == (form != "plain")
    with open_checkpoint(tiny.source("gpt_oss_blocks"), published=True) as source:
        rows = np.array(source.tensors[f"{EXPERTS}.gate_up_proj_blocks"])[:, 1::2]
    assert np.array_equal(np.ascontiguousarray(packed.codes).view(np.uint8).reshape(rows.shape), rows)


def test_the_report_counts_weights_in_blocks(tmp_path: Path) -> None:
    names = family_of({"model_type": "gpt_oss"}).name_map
    report = convert(tiny.source("gpt_oss_blocks"), tmp_path / "a", names, quantized=False)
    plain = convert(tiny.source("gpt_oss"), tmp_path / "b", names, quantized=False)
    assert report.n_weights == plain.n_weights
    assert (report.n_quantized, plain.n_quantized) == (4 * 3, 0)
    assert report.nbytes < plain.nbytes / 2


def test_a_source_in_blocks_is_no_checkpoint_to_load() -> None:
    with pytest.raises(UnsupportedError, match="coterie convert") as caught:
        open_checkpoint(tiny.source("gpt_oss_blocks"))
    assert caught.value.code == "quant_method"


def test_an_override_cannot_reach_codes_in_blocks(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="matches no layer"):
        ours(tiny.source("gpt_oss_blocks"), tmp_path / "a", overrides=[LayerFormat(r".*experts\..*", bits=8)])


BAD_BLOCKS: list[tuple[str, Any, str]] = [
    ("gate_up_proj_scales", None, "scales_missing"),
    ("down_proj_scales", None, "scales_missing"),
    ("gate_up_proj_blocks", np.zeros((8, 256, 4, 8), np.uint8), "layout_shape"),
    ("gate_up_proj_blocks", np.zeros((8, 256, 4, 16), np.float32), "layout_shape"),
    ("gate_up_proj_blocks", np.zeros((16,), np.uint8), "layout_shape"),
    ("gate_up_proj_blocks", np.zeros((8, 255, 4, 16), np.uint8), "split_shape"),
    ("gate_up_proj_bias", np.zeros((8, 255), np.float32), "split_shape"),
    ("down_proj_scales", np.full((8, 128, 3), 127, np.uint8), "scales_shape"),
    ("down_proj_scales", np.full((8, 128, 4), 1.0, np.float32), "scales_shape"),
    ("gate_up_proj_scales", np.full((8, 256, 4), 255, np.uint8), "not_finite"),
]


@pytest.mark.parametrize(("name", "value", "code"), BAD_BLOCKS)
def test_damaged_blocks_are_refused(name: str, value: Any, code: str, tmp_path: Path) -> None:
    source = blocks(tmp_path / "source", **{name: value})
    with pytest.raises((CheckpointError, NumericError)) as caught:
        ours(source, tmp_path / "target")
    assert caught.value.code == code
    assert EXPERTS in str(caught.value)
    assert not (tmp_path / "target").exists()


def test_blocks_belong_to_a_family_that_has_them(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    with open_checkpoint(tiny.source("mixtral")) as checkpoint:
        tensors = {name: np.array(checkpoint.tensors[name]) for name in checkpoint.names}
        config = {**checkpoint.config, "quantization_config": {"quant_method": "mxfp4"}}
    write(folder, tensors, config)
    with pytest.raises(UnsupportedError) as caught:
        ours(folder, tmp_path / "target")
    assert caught.value.code == "quant_method"


def test_mlx_lm_reads_what_is_made_of_blocks(tmp_path: Path) -> None:
    ours(tiny.source("gpt_oss_blocks"), tmp_path / "ours", bits=8, group_size=64)
    theirs(tiny.source("gpt_oss_blocks"), tmp_path / "theirs", {"bits": 8, "group_size": 64})
    ids = tiny.token_ids()
    found, expected = (references.mlx_logits(tmp_path / name, ids) for name in ("ours", "theirs"))
    assert np.array_equal(found, expected)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["quantization"]["bits"] == 8
