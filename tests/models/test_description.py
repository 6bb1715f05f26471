"""The figures of `describe`, against sums that are written out by hand for a small checkpoint."""

from pathlib import Path

import pytest

from cli.sources import CONFIG, write_source
from coterie.checkpoint import convert, open_checkpoint
from coterie.models.description import Description, ExpertsDescription, describe
from coterie.models.families import family_of
from models import tiny

HIDDEN, EXPERT, DENSE, VOCABULARY = 128, 64, 256, 256
ATTENTION = HIDDEN * (128 + 64 + 64 + 128) + 2 * 32 + 2 * HIDDEN  # q, k, v, o, norms of queries and keys, two norms
EXPERTS = 3 * HIDDEN * EXPERT
ROUTER = 8 * HIDDEN


def described(folder: Path) -> Description:
    with open_checkpoint(folder) as checkpoint:
        return describe(family_of(checkpoint.config).architecture(checkpoint.config), checkpoint)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("description") / "source")


def test_parameters_and_bytes_of_an_unquantised_checkpoint(source: Path) -> None:
    found = described(source)
    layers = 3 * ATTENTION + 2 * (8 * EXPERTS + ROUTER) + 3 * HIDDEN * DENSE
    assert found.n_parameters == layers + 2 * VOCABULARY * HIDDEN + HIDDEN
    assert found.n_active_parameters == found.n_parameters - 2 * 6 * EXPERTS - (VOCABULARY - 1) * HIDDEN
    assert found.nbytes == 4 * found.n_parameters
    assert found.nbytes_per_token == 4 * found.n_active_parameters
    assert found.experts == (ExpertsDescription(n_experts=8, top_k=2, width=EXPERT, n_layers=2),)
    assert (found.family, found.n_layers, found.windows) == ("qwen3_moe", 3, (None, None, None))
    assert (found.hidden_size, found.vocab_size, found.context_length) == (HIDDEN, VOCABULARY, 512)


def test_formats_and_bytes_of_a_quantised_checkpoint(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "target", family_of(CONFIG).name_map, bits=4, group_size=64, dtype="bfloat16")
    found = described(tmp_path / "target")
    weights = {weight.path: weight for weight in found.weights}
    down = weights["model.layers.0.mlp.switch_mlp.down_proj"]
    assert down.format == "affine 4 bits, group 64"
    assert down.nbytes == 8 * HIDDEN * EXPERT * 9 // 16  # half a byte a code, two times two bytes for each 64 of them
    assert down.nbytes_per_token == down.nbytes // 4
    assert weights["model.layers.0.mlp.gate"].format == "affine 8 bits, group 64"
    assert weights["model.norm"].format == "bfloat16"
    assert found.nbytes == sum(weight.nbytes for weight in found.weights)


def test_a_tied_embedding_is_read_whole(source: Path) -> None:
    tied = {**CONFIG, "tie_word_embeddings": True}
    with open_checkpoint(source) as checkpoint:
        found = describe(family_of(tied).architecture(tied), checkpoint)
    assert found.weights[0].nbytes_per_token == found.weights[0].nbytes


def test_one_row_of_per_layer_embeddings_is_read_for_a_token() -> None:
    weights = {weight.path: weight for weight in described(tiny.checkpoint("gemma4_per_layer", "plain")).weights}
    prefix = "language_model.model."
    own = weights[prefix + "embed_tokens_per_layer"]
    assert (own.n_active_parameters, own.nbytes_per_token) == (6 * 64, 6 * 64 * 4)
    assert weights[prefix + "embed_tokens"].n_active_parameters == weights[prefix + "embed_tokens"].n_parameters
