"""Values that are not numbers, and scales that no quantiser writes, are found at load wherever they are."""

from pathlib import Path

import numpy as np
import pytest

from checkpoint.attacks import CONFIG
from coterie.arrays import bfloat16
from coterie.checkpoint import open_checkpoint, scan, write_checkpoint
from coterie.errors import CheckpointError
from coterie.formats import Format
from coterie.formats.codec import quantize

PLACES = ("norm.weight", "router.scale", "embed.weight", "experts.weight", "m.scales", "m.biases")
FLOATS = (np.float32, np.float16, bfloat16, np.float64)
CONFIG_4 = {**CONFIG, "quantization": {"bits": 4, "group_size": 32}}


def tensors(dtype: type | np.dtype) -> dict[str, np.ndarray]:
    """A good quantised checkpoint in small; its floats have the given dtype."""
    ones = {
        "norm.weight": np.ones(16, dtype),
        "router.scale": np.ones((), dtype),
        "embed.weight": np.ones((16, 32), dtype),
        "experts.weight": np.ones((4, 3, 32), dtype),
    }
    weight = np.linspace(-1, 1, 128).reshape(2, 64)
    codes, scales, biases = quantize(weight.astype(np.float32), Format.resolve("affine", 4, 32))
    assert biases is not None
    return {**ones, "m.weight": codes, "m.scales": scales.astype(dtype), "m.biases": biases.astype(dtype)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("place", PLACES)
def test_one_bad_value_anywhere(place: str, dtype: type, value: float, tmp_path: Path) -> None:
    content = tensors(dtype)
    content[place][(-1,) * content[place].ndim] = value
    write_checkpoint(tmp_path / "m", content, CONFIG_4)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "m")
    assert caught.value.code == "not_finite"
    last = [size - 1 for size in content[place].shape]
    for words in (repr(place), str(last), "NaN or infinity", "scan=False", "model.safetensors"):
        assert words in str(caught.value)
    with open_checkpoint(tmp_path / "m", scan=False) as checkpoint:
        assert not np.isfinite(checkpoint.tensors[place].astype(np.float64)).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: np.dtype(dtype).name)
def test_good_values_pass(dtype: type, tmp_path: Path) -> None:
    content = tensors(dtype)
    kind = np.dtype(dtype)
    largest = np.array({"float64": 1.7e308, "float32": 3.4e38, "bfloat16": 3.38e38, "float16": 65504}[kind.name], dtype)
    content["norm.weight"][:3] = (largest, -largest, 0)
    content["norm.weight"][3:5] = np.array([1, -1], kind) * np.finfo(np.float16).smallest_subnormal.astype(kind)
    write_checkpoint(tmp_path / "m", content, CONFIG_4)
    open_checkpoint(tmp_path / "m").close()


def test_a_bad_value_behind_the_first_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", 64)
    content = {"w": np.ones((10, 7), np.float32)}
    content["w"][8, 5] = np.nan
    write_checkpoint(tmp_path / "m", content, CONFIG)
    with pytest.raises(CheckpointError, match=r"at \[8, 5\]"):
        open_checkpoint(tmp_path / "m")


NOT_NUMBERS = [("mxfp4", 255), ("mxfp8", 255), ("nvfp4", 0x7F), ("nvfp4", 0xFF)]
NUMBERS = [("mxfp4", 0x7F), ("mxfp8", 254), ("nvfp4", 0x7E), ("nvfp4", 0x80)]


@pytest.mark.parametrize(("mode", "byte"), [*NOT_NUMBERS, *NUMBERS])
@pytest.mark.parametrize("split", [False, True])
def test_byte_scales_are_judged_by_their_format(mode: str, byte: int, split: bool, tmp_path: Path) -> None:
    weight = np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 64)
    codes, scales, _ = quantize(weight, Format.resolve(mode))
    scales[2, 1] = byte
    config = {**CONFIG, "quantization": {"mode": mode}}
    write_checkpoint(
        tmp_path / "m", {"m.weight": codes, "m.scales": scales}, config, max_shard=64 if split else 1 << 30
    )
    if (mode, byte) in NOT_NUMBERS:
        with pytest.raises(CheckpointError, match=r"'m.scales'.*\[2, 1\]") as caught:
            open_checkpoint(tmp_path / "m")
        assert caught.value.code == "not_finite"
    else:
        open_checkpoint(tmp_path / "m").close()


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_scales_that_are_all_zero(mode: str, tmp_path: Path) -> None:
    codes, scales, biases = quantize(np.ones((2, 64), np.float32), Format.resolve(mode))
    content = {"m.weight": codes, "m.scales": scales * 0} | ({} if biases is None else {"m.biases": biases})
    config = {**CONFIG, "quantization": {"mode": mode}}
    write_checkpoint(tmp_path / "m", content, config)
    with pytest.raises(CheckpointError, match=r"'m.scales'.*all zero") as caught:
        open_checkpoint(tmp_path / "m")
    assert caught.value.code == "zero_scales"
    content["m.scales"] = content["m.scales"].copy()
    content["m.scales"][0, 0] = 1
    write_checkpoint(tmp_path / "m", content, config, force=True)
    open_checkpoint(tmp_path / "m").close()


@pytest.mark.parametrize(("dtype", "refused"), [(np.float32, True), (bfloat16, True), (np.float16, False)])
def test_denormal_scales(dtype: type, refused: bool, tmp_path: Path) -> None:
    content = tensors(dtype)
    bits = content["m.scales"].view(np.uint32 if dtype is np.float32 else np.uint16)
    bits[0, 0] = 3
    write_checkpoint(tmp_path / "m", content, CONFIG_4)
    if refused:
        with pytest.raises(CheckpointError, match=r"'m.scales'.*denormal") as caught:
            open_checkpoint(tmp_path / "m")
        assert caught.value.code == "denormal_scales"
    else:
        open_checkpoint(tmp_path / "m").close()


def test_a_group_of_zeros_is_no_fault(tmp_path: Path) -> None:
    """Padding rows of an embedding quantise to the smallest scale; in float16 that is a denormal number."""
    for dtype in (np.float16, bfloat16, np.float32):
        weight = np.ones((4, 64), dtype)
        weight[1] = 0
        codes, scales, biases = quantize(weight, Format.resolve("affine", 4, 32))
        assert biases is not None
        write_checkpoint(
            tmp_path / "m", {"m.weight": codes, "m.scales": scales, "m.biases": biases}, CONFIG_4, force=True
        )
        open_checkpoint(tmp_path / "m").close()
