"""The GGUF file holds the same numbers, and llama.cpp computes the same model with it."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from bench.tiny_models import TINY, tiny
from coterie.bench import model
from coterie.bench.entrants import RefusedError
from coterie.bench.shapes import FORMATS
from coterie.bench.subject import Subject
from coterie.bench.subjects import from_disk, from_shape
from coterie.formats import Format, Packed, codec

NAMES = ("qwen3-30b-a3b", "gemma-4-26b-a4b")
KINDS = {"4bit": "Q4_0", "8bit": "Q8_0", "mxfp4": "MXFP4"}
INT8 = 4e-2
"""Relative L2 of logits: activations in 8 bits cost 1 to 2 % in every layer's branches, and only partly add up."""

gguf = pytest.importorskip("gguf", reason="gguf is not installed")


def subject(name: str, format_name: str) -> Subject:
    return from_shape(TINY[name], 2, FORMATS[format_name], format_name)


def written(made: Subject, path: Path) -> dict:
    from coterie.bench.peers.gguf import write

    write(path, made.decoder.architecture, made.decoder.weights)
    return {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}


def numbers(weight) -> np.ndarray:
    if not isinstance(weight, Packed):
        return np.asarray(weight, np.float64)
    return codec.dequantize_f64(weight.codes, weight.scales, weight.biases, weight.format)


@pytest.mark.parametrize("format_name", KINDS)
def test_no_number_changes(format_name: str, tmp_path: Path) -> None:
    """gguf's own decoder reads back exactly what the weights are."""
    made = subject("qwen3-30b-a3b", format_name)
    tensors = written(made, tmp_path / "model.gguf")
    pairs = {
        "token_embd.weight": "model.embed_tokens",
        "output.weight": "lm_head",
        "blk.1.attn_q.weight": "model.layers.1.self_attn.q_proj",
        "blk.1.ffn_down_exps.weight": "model.layers.1.mlp.switch_mlp.down_proj",
        "blk.0.ffn_gate_inp.weight": "model.layers.0.mlp.gate",
    }
    for name, path in pairs.items():
        tensor, weight = tensors[name], made.decoder.weights[path]
        assert tensor.tensor_type.name == ("F32" if name.endswith("inp.weight") else KINDS[format_name])
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.reshape(weight.shape), numbers(weight).astype(np.float32))


def test_gate_and_up_of_an_expert_stand_in_one_tensor(tmp_path: Path) -> None:
    made = subject("gemma-4-26b-a4b", "4bit")
    tensors = written(made, tmp_path / "model.gguf")
    tensor = tensors["blk.1.ffn_gate_up_exps.weight"]
    inside = "language_model.model.layers.1.experts.switch_glu"
    gate, up = (numbers(made.decoder.weights[f"{inside}.{part}_proj"]) for part in ("gate", "up"))
    found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(found, np.concatenate([gate, up], 1).astype(np.float32))
    np.testing.assert_array_equal(tensors["rope_freqs.weight"].data, np.repeat([1, 1e30], [16, 48]).astype(np.float32))


def test_bytes_of_a_step_are_the_file_s(tmp_path: Path) -> None:
    """All of the file but the experts that a token does not take, and all but a row of the embedding."""
    from coterie.bench.peers.gguf import bytes_per_token
    from coterie.bench.subject import cache_bytes

    made = subject("qwen3-30b-a3b", "4bit")
    tensors = written(made, tmp_path / "model.gguf")
    wanted = 0.0
    for name, tensor in tensors.items():
        share = 1 / 2 if "_exps" in name else 1 / 512 if name == "token_embd.weight" else 1
        wanted += int(tensor.n_bytes) * share
    found = bytes_per_token(made, 9, 1)
    assert found == pytest.approx(wanted + cache_bytes(made.decoder.architecture, 10) / 2)


def test_weights_that_would_be_rounded_are_refused(tmp_path: Path) -> None:
    from coterie.bench.peers.gguf import write

    made = from_disk(None)
    with pytest.raises(RefusedError, match="are not those of q4_0"):
        write(tmp_path / "model.gguf", made.decoder.architecture, made.decoder.weights)
    three = from_shape(TINY["qwen3-30b-a3b"], 1, Format.resolve("affine", 3, 64), "3bit")
    with pytest.raises(RefusedError, match="no type for"):
        write(tmp_path / "model.gguf", three.decoder.architecture, three.decoder.weights)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama_cpp is not installed")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format_name", KINDS)
def test_llama_cpp_computes_the_same_model(name: str, format_name: str, tmp_path: Path) -> None:
    """With all experts taken, so that a near tie does not choose others; beyond the sliding window."""
    from coterie.bench.peers.llama_model import running

    all_taken = {"top_k_experts": 8} if name.startswith("gemma") else {"num_experts_per_tok": 8}
    made = from_shape(tiny(name, **all_taken), 2, FORMATS[format_name], format_name)
    written(made, tmp_path / "model.gguf")
    ids = np.random.default_rng(3).integers(0, 512, 40).tolist()
    with running() as peer:
        peer.load(tmp_path / "model.gguf", 1, ids, ids, 64)
        for length in (1, 7, 40):
            ours, theirs = made.last_logits(ids[:length]).astype(np.float64), np.array(peer.last_logits(ids[:length]))
            assert np.linalg.norm(ours - theirs) / np.linalg.norm(ours) < INT8, length
        first, steps = peer.decode(ids[:5], ids[5:8])
        assert first > 0
        assert len(steps) == 3
        assert peer.peak_memory() > 1 << 20
        assert "int8 activations" in peer.note


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama_cpp is not installed")
def test_llama_cpp_takes_part_in_the_rounds() -> None:
    settings = model.Settings(prompt=6, steps=3, prefill=10, repeats=1, buffer_bytes=4 << 20)
    report = model.run(settings, lambda: subject("gemma-4-26b-a4b", "4bit"))
    assert report.refusals == {}
    assert [row.kernel for row in report.rows] == ["coterie", "llama.cpp"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama_cpp is not installed")
def test_what_llama_cpp_does_not_load_is_a_reason(tmp_path: Path) -> None:
    from coterie.bench.peers.llama_model import running

    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with running() as peer, pytest.raises(RefusedError, match="does not load"):
        peer.load(path, 1, [1], [1], 64)
