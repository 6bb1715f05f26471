"""Reading what is right: the same bytes as the reference reader, without a copy; all else is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkpoint.attacks import CONFIG, folder, good
from coterie.arrays import bfloat16
from coterie.checkpoint import open_checkpoint, write_checkpoint, write_safetensors
from coterie.checkpoint.header import DTYPES
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.errors import ArgumentError, CheckpointError, UnsupportedError
from coterie.formats import Format, Packed
from coterie.formats.codec import dequantize, quantize

SMALL = good({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.uint8)}, {"format": "mlx"})


def of_every_dtype(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A tensor of each dtype, of odd lengths, so that most are unaligned when they follow each other."""
    tensors = {}
    for name, dtype in DTYPES.items():
        values = rng.integers(0, 2 if name == "BOOL" else 100, (3, 5))
        tensors[name.lower()] = values.astype(dtype)
    return tensors


def test_the_same_values_as_the_reference_writer(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors = {name: array for name, array in of_every_dtype(rng).items() if array.dtype.isbuiltin == 1}
    assert len(tensors) == 12
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(tensors, path, {"format": "np"})
    with SafetensorsFile(path) as file:
        assert file.metadata == {"format": "np"}
        assert set(file.tensors) == set(tensors)
        for name, array in tensors.items():
            assert file.array(name).dtype == array.dtype
            np.testing.assert_array_equal(file.array(name), array)


def test_the_reference_reader_reads_what_is_written(rng: np.random.Generator, tmp_path: Path) -> None:
    tensors = of_every_dtype(rng) | {"empty": np.zeros((0, 2), np.float32), "scalar": np.float32(3).reshape(())}
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors)
    read = dict(safetensors.deserialize(path.read_bytes()))
    assert set(read) == set(tensors)
    with SafetensorsFile(path) as file:
        assert file.metadata == {"format": "mlx"}
        for name, array in tensors.items():
            assert DTYPES[read[name]["dtype"]] == array.dtype
            assert tuple(read[name]["shape"]) == array.shape
            assert bytes(read[name]["data"]) == array.tobytes()
            found = file.array(name)
            assert (found.dtype, found.tobytes()) == (array.dtype, array.tobytes())
            assert found.flags.aligned


@pytest.mark.parametrize("padding", range(8))
def test_any_alignment_is_read_without_a_copy(padding: int, tmp_path: Path) -> None:
    tensors = {
        "f": np.arange(5, dtype=np.float32),
        "h": np.arange(5).astype(bfloat16),
        "u": np.arange(3, dtype=np.uint32),
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(good(tensors, padding=padding))
    file = SafetensorsFile(path)
    for name, array in tensors.items():
        view = file.array(name)
        np.testing.assert_array_equal(view, array)
        assert not view.flags.writeable
        assert not view.flags.owndata
        assert np.shares_memory(view, file.array(name))


def test_arrays_outlive_the_checkpoint(tmp_path: Path, open_files: Callable[[], int]) -> None:
    path = folder(tmp_path / "m", {"model.safetensors": SMALL})
    before = open_files()
    with open_checkpoint(path) as checkpoint:
        array = checkpoint.tensors["a"]
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))
    assert open_files() > before or before == 0
    with pytest.raises(CheckpointError) as caught:
        _ = checkpoint.tensors["a"]
    assert caught.value.code == "closed"
    del array
    assert open_files() == before


def test_the_mapping_of_tensors(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(folder(tmp_path / "m", {"model.safetensors": SMALL}))
    assert sorted(checkpoint.tensors) == list(checkpoint.names) == ["a", "b"]
    assert len(checkpoint.tensors) == 2
    assert "c" not in checkpoint.tensors
    assert checkpoint.tensors.get("c") is None
    assert checkpoint.nbytes == 28
    assert checkpoint.array("a", (2, 3)).shape == (2, 3)
    with pytest.raises(CheckpointError, match=r"found shape \[2, 3\], expected \[3, 2\]"):
        checkpoint.array("a", (3, 2))
    with pytest.raises(CheckpointError, match=r"'aa' is missing .*'a'") as caught:
        checkpoint.array("aa")
    assert caught.value.code == "tensor_missing"


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    flips=st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, len(SMALL)),
    tail=st.binary(max_size=8),
)
@example(flips=[], cut=len(SMALL), tail=b"")
def test_damaged_bytes_are_refused_or_harmless(
    flips: list[tuple[int, int]], cut: int, tail: bytes, tmp_path: Path
) -> None:
    data = bytearray(SMALL)
    for at, value in flips:
        data[at] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(data[:cut]) + tail)
    assert_refused_or_harmless(path)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    header=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["dtype", "shape", "data_offsets", "t", "__metadata__"]) | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_header_is_refused_or_harmless(header: object, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    assert_refused_or_harmless(path)


def assert_refused_or_harmless(path: Path) -> None:
    """Every tensor can be had, or the file is refused with a code and a message fit for a terminal."""
    try:
        file = SafetensorsFile(path)
    except CheckpointError as error:
        refusal = error
    else:
        with file:
            assert all(file.array(name).nbytes == info.nbytes for name, info in file.tensors.items())
        return
    assert refusal.code != "checkpoint"
    assert str(path) in str(refusal)
    assert str(refusal).isprintable()


def quantized(tmp_path: Path, weight: np.ndarray, fmt: Format, **config: object) -> Path:
    """A checkpoint with the one module "m", packed."""
    codes, scales, biases = quantize(weight, fmt)
    tensors = {"m.weight": codes, "m.scales": scales} | ({} if biases is None else {"m.biases": biases})
    declared = {"bits": fmt.bits, "group_size": fmt.group_size, "mode": fmt.mode}
    write_checkpoint(tmp_path / "m", tensors, {**CONFIG, "quantization": {**declared, **config}})
    return tmp_path / "m"


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_packed_matrices_come_back_as_they_were(
    mode: str, dtype: type, rng: np.random.Generator, tmp_path: Path
) -> None:
    fmt = Format.resolve(mode)
    weight = rng.standard_normal((3, 8, 128)).astype(dtype)
    checkpoint = open_checkpoint(quantized(tmp_path, weight, fmt))
    packed = checkpoint.packed("m", 128)
    assert isinstance(packed, Packed)
    assert (packed.format, packed.shape) == (fmt, (3, 8, 128))
    codes, scales, biases = quantize(weight, fmt)
    expected = dequantize(codes, scales, biases, fmt, np.float32)
    found = dequantize(packed.codes, packed.scales, packed.biases, fmt, np.float32)
    np.testing.assert_array_equal(found, expected)


def test_plain_matrices_are_checked(tmp_path: Path) -> None:
    tensors = {
        "m.weight": np.ones((4, 8), bfloat16),
        "i.weight": np.ones((4, 8), np.int32),
        "v.weight": np.ones(8, np.float32),
    }
    write_checkpoint(tmp_path / "m", tensors, CONFIG)
    checkpoint = open_checkpoint(tmp_path / "m")
    plain = checkpoint.packed("m", 8)
    assert isinstance(plain, np.ndarray)
    assert plain.dtype == bfloat16
    for path, in_dims, code in (
        ("m", 4, "shape"),
        ("i", 8, "weight_dtype"),
        ("v", 8, "shape"),
        ("x", 8, "tensor_missing"),
    ):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.packed(path, in_dims)
        assert caught.value.code == code
        assert f"{path}.weight" in str(caught.value)


def test_a_missing_bias_and_a_global_scale(rng: np.random.Generator, tmp_path: Path) -> None:
    weight = rng.standard_normal((4, 64)).astype(np.float32)
    codes, scales, _ = quantize(weight, Format.resolve("affine"))
    config = {**CONFIG, "quantization": {"bits": 4, "group_size": 64}}
    write_checkpoint(tmp_path / "a", {"m.weight": codes, "m.scales": scales}, config)
    with pytest.raises(CheckpointError, match="'m': biases are missing") as caught:
        open_checkpoint(tmp_path / "a").packed("m", 64)
    assert caught.value.code == "packed_biases"
    tensors = {"m.weight": codes, "m.scales": scales, "m.global_scale": np.ones(1, np.float32)}
    write_checkpoint(tmp_path / "b", tensors, config)
    with pytest.raises(UnsupportedError, match="global_scale"):
        open_checkpoint(tmp_path / "b").packed("m", 64)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "U8", "I8", "BOOL"])
def test_bytes_for_a_weight_must_be_declared(dtype: str, tmp_path: Path) -> None:
    header = {"m.weight": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    path = folder(tmp_path / "m", {"model.safetensors": len(text).to_bytes(8, "little") + text + bytes(8)})
    with pytest.raises(CheckpointError, match=r"'m.weight'.*expected") as caught:
        open_checkpoint(path)
    assert caught.value.code == "bytes_undeclared"


def test_targets_that_are_taken(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"model.safetensors": SMALL})
    before = sorted(child.name for child in path.iterdir())
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(path)
    for name, code in (("m", "target_exists"), ("file", "target"), ("link", "target")):
        with pytest.raises(ArgumentError) as caught:
            write_checkpoint(tmp_path / name, {"a": np.zeros(1, np.float32)}, CONFIG, force=name != "m")
        assert caught.value.code == code
    assert sorted(child.name for child in path.iterdir()) == before
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "empty", {"a": np.zeros(1, np.float32)}, CONFIG)
    assert open_checkpoint(tmp_path / "empty").names == ("a",)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="complex64"):
        write_safetensors(tmp_path / "x", {"a": np.zeros(1, np.complex64)})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_checkpoint(tmp_path / "m", {"a": np.zeros(1, np.float32)}, {**CONFIG, "x": float("nan")})
    with pytest.raises(CheckpointError) as caught:
        write_checkpoint(tmp_path / "m", {"a\n": np.zeros(1, np.float32)}, CONFIG)
    assert caught.value.code == "tensor_name"
    assert list(tmp_path.iterdir()) == []
