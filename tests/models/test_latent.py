"""Models with latent attention: both stored forms of the matrices out of the latent, and what the cache keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.checkpoint import open_checkpoint, write_checkpoint
from coterie.errors import CheckpointError
from coterie.formats import Format, Packed
from coterie.formats.codec import dequantize, quantize
from coterie.models.decoder import Decoder
from coterie.models.families import family_of
from coterie.models.latent import matrices_of
from coterie.models.weights import read_weights, slots
from coterie.ops import dispatch
from coterie.runtime.cache import KeyValueCache
from models import references, tiny

IDS = tiny.token_ids()
FORMAT = Format.resolve("affine", 4, 64)


def joined_form(name: str, folder: Path) -> Path:
    """The checkpoint with the matrices out of the latent as files had them before: quantised as one, and joined."""
    with open_checkpoint(tiny.checkpoint(name, "4 bits g64")) as source:
        tensors: dict[str, Any] = {n: np.array(source.tensors[n]) for n in source.names}
        config = source.config
    apart = {n for n in tensors if ".embed_q." in n or ".unembed_out." in n}
    for stem in {n.partition("embed_q")[0] for n in apart if ".embed_q." in n}:
        keys, values = (
            dequantize(
                *(tensors[f"{stem}{part}.{leaf}"] for leaf in ("weight", "scales", "biases")), FORMAT, np.float32
            )
            for part in ("embed_q", "unembed_out")
        )
        both = np.concatenate((keys.swapaxes(1, 2), values), axis=1)
        packed = quantize(both.reshape(-1, both.shape[-1]), FORMAT)
        tensors |= dict(
            zip((f"{stem}kv_b_proj.{leaf}" for leaf in ("weight", "scales", "biases")), packed, strict=True)
        )
    write_checkpoint(folder, {n: value for n, value in tensors.items() if n not in apart}, config)
    return folder


def decoder(folder: Path) -> Decoder:
    with open_checkpoint(folder) as checkpoint:
        architecture = family_of(checkpoint.config).architecture(checkpoint.config)
        return Decoder(architecture, read_weights(architecture, checkpoint), dispatch.decoder("cpu", "exact"))


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v3_groups"])
def test_older_files_with_one_matrix_for_keys_and_values(name: str, tmp_path: Path) -> None:
    folder = joined_form(name, tmp_path / "joined")
    made = decoder(folder)
    cache = KeyValueCache(made.architecture, chunk=40, limit=len(IDS))
    parts = [IDS[:40], *([token] for token in IDS[40:])]
    found = np.concatenate([made.logits(made.hidden(part, cache)) for part in parts])
    expected = references.transformers_logits(tiny.MODELS[name], folder, IDS)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


def test_heads_are_views_of_the_stored_matrix(tmp_path: Path) -> None:
    made = decoder(joined_form("deepseek_v3", tmp_path / "joined"))
    attention, path = made.architecture.layers[0].attention, "model.layers.0.self_attn.kv_b_proj"
    matrices = matrices_of(attention, {"self_attn.kv_b_proj": made.weights[path]})  # type: ignore[arg-type]
    assert isinstance(matrices.key, Packed)
    assert matrices.key.shape == (4, 64, 256)
    assert matrices.value.shape == (4, 16, 256)
    for part in (matrices.key, matrices.value):
        assert np.shares_memory(part.codes, made.weights[path].codes)
        assert np.shares_memory(part.biases, made.weights[path].biases)


def test_a_checkpoint_with_neither_form_names_its_family_s_own(tmp_path: Path) -> None:
    for name, expected in (("deepseek_v2", "kv_b_proj"), ("deepseek_v3", "embed_q")):
        with open_checkpoint(tiny.checkpoint(name, "plain")) as checkpoint:
            architecture = family_of(checkpoint.config).architecture(checkpoint.config)
            forms = ("kv_b_proj", "embed_q", "unembed_out")
            tensors = {n: checkpoint.tensors[n] for n in checkpoint.names if not any(form in n for form in forms)}
            config = checkpoint.config
            names = [slot.tensor for slot in slots(architecture)]
        assert any(expected in n for n in names)
        write_checkpoint(tmp_path / name, tensors, config)
        with open_checkpoint(tmp_path / name) as checkpoint, pytest.raises(CheckpointError, match=expected):
            read_weights(architecture, checkpoint)


def test_both_forms_at_once_are_one_too_many(tmp_path: Path) -> None:
    with open_checkpoint(tiny.checkpoint("deepseek_v3", "plain")) as checkpoint:
        tensors = {n: checkpoint.tensors[n] for n in checkpoint.names}
        tensors["model.layers.0.self_attn.kv_b_proj.weight"] = np.zeros((320, 256), np.float32)
        write_checkpoint(tmp_path / "both", tensors, checkpoint.config)
    with pytest.raises(CheckpointError, match="kv_b_proj") as refused:
        decoder(tmp_path / "both")
    assert refused.value.code == "unused_tensors"


def test_the_cache_keeps_a_latent_and_a_turned_key_for_all_heads() -> None:
    made = decoder(tiny.checkpoint("deepseek_v2", "plain"))
    cache = KeyValueCache(made.architecture, chunk=8, limit=100)
    made.hidden(IDS[:8], cache)
    assert [[part.shape for part in store.stores] for store in cache.layers] == [[(1, 64, 128), (1, 64, 16)]] * 3
    assert KeyValueCache.nbytes_for(made.architecture, chunk=8, limit=100) == 3 * 100 * (128 + 16) * 4
