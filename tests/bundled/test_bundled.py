"""The model in the package: whole, small, readable by others, and trained."""

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import coterie
from coterie import bundled

LIMIT = 12_000_000
FILES = (
    "README.md",
    "LICENSE.txt",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
KEYS_WITH_UNEQUAL_DEFAULTS = (
    "vocab_size",
    "hidden_size_per_layer_input",
    "num_kv_shared_layers",
    "use_double_wide_mlp",
    "sliding_window",
    "layer_types",
    "global_head_dim",
    "num_global_key_value_heads",
    "rope_parameters",
    "final_logit_softcapping",
    "tie_word_embeddings",
    "pad_token_id",
)
"""What transformers and mlx-lm fill in differently when a config leaves it out."""
GREEDY: list[dict[str, Any]] = json.loads(Path(__file__).with_name("greedy.json").read_text())
UNSEEN = '''def shelf_label(shelf, row, *, width=12):
    """Return the label of a shelf as a string of the given width."""
    if row < 0:
        raise ValueError("row must not be negative")
    name = "%s-%d" % (shelf.name, row)
    return name.ljust(width)


class Shelf:
    def __init__(self, name, rows=None):
        self.name = name
        self.rows = list(rows or [])

    def __len__(self):
        return len(self.rows)

    def add(self, row):
        if row in self.rows:
            raise KeyError(row)
        self.rows.append(row)
'''
"""Written for this test, so in no library that the model was trained on."""


@pytest.fixture(scope="module")
def model() -> coterie.Model:
    return coterie.load()


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((bundled.path() / "config.json").read_text())
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(bundled.path() / "tokenizer.json"))


def test_every_file_is_there_and_all_of_them_are_small() -> None:
    assert [name for name in FILES if not (bundled.path() / name).is_file()] == []
    assert sum(file.stat().st_size for file in bundled.path().iterdir() if file.is_file()) < LIMIT


def test_config_leaves_nothing_to_a_readers_defaults(config: dict[str, Any]) -> None:
    assert [key for key in KEYS_WITH_UNEQUAL_DEFAULTS if key not in config] == []
    assert config["layer_types"][-1] == "full_attention"


def test_config_is_the_mixture_of_experts_in_4_bits(config: dict[str, Any]) -> None:
    assert (config["model_type"], config["enable_moe_block"], config["num_experts"]) == ("gemma4_text", True, 16)
    quantization = config["quantization"]
    assert (quantization["bits"], quantization["group_size"]) == (4, 64)
    routers = [f"model.layers.{i}.router.proj" for i in range(config["num_hidden_layers"])]
    assert [quantization[name]["bits"] for name in routers] == [8] * len(routers)


def test_end_of_text_is_one_token_in_every_file(config: dict[str, Any], tokenizer: Tokenizer) -> None:
    generation = json.loads((bundled.path() / "generation_config.json").read_text())
    names = json.loads((bundled.path() / "tokenizer_config.json").read_text())
    end = tokenizer.token_to_id(names["eos_token"])
    assert names["bos_token"] == names["eos_token"]
    assert {end} == {c[key] for c in (config, generation) for key in ("eos_token_id", "bos_token_id")}


def test_tokenizer_gives_every_text_back(tokenizer: Tokenizer) -> None:
    source = random.Random(7)
    scalars = [c for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    texts = ["".join(map(chr, source.choices(scalars, k=200))) for _ in range(50)]
    texts += [
        bytes(range(128)).decode("ascii"),
        "",
        " ",
        "\n\n    \t\r\n x",
        "e\u0301 \u65e5\u672c \U0001f40d\u200d",
        UNSEEN,
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_starts_a_text_and_takes_an_indentation_whole(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("if x:\n        return 1").tokens
    assert tokens[0] == "<|endoftext|>"
    assert "\u010a" + "\u0120" * 8 in tokens  # byte-level spelling of a line break and eight spaces


@pytest.mark.parametrize("case", GREEDY, ids=lambda case: case["prompt"][:20])
def test_greedy_text_is_as_recorded(model: coterie.Model, case: dict[str, Any]) -> None:
    assert model.generate(case["prompt"], max_tokens=40).text == case["text"]


def test_one_recorded_prompt_is_longer_than_the_sliding_window(model: coterie.Model, config: dict[str, Any]) -> None:
    lengths = [len(model.tokenizer.encode(case["prompt"])) for case in GREEDY]
    assert max(lengths) > config["sliding_window"]


def test_mlx_lm_reads_it_and_writes_the_same_text() -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    theirs, tokenizer = mlx_lm.load(str(bundled.path()))
    theirs.set_dtype(mx.float32)  # the recorded choices are those of float32; bfloat16 would turn near ties
    for case in GREEDY:
        pieces = mlx_lm.stream_generate(theirs, tokenizer, tokenizer.encode(case["prompt"]), max_tokens=40)
        assert tokenizer.decode([piece.token for piece in pieces]) == case["text"]


def test_it_has_learnt_more_than_pairs_of_tokens(model: coterie.Model, repository: Path) -> None:
    baselines = json.loads((repository / "training" / "results" / "baselines.json").read_text())
    ids = model.tokenizer.encode(UNSEEN, special_tokens=True)
    logits = model.logits(ids)[:-1].astype(np.float64)
    log_sums = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    nats = log_sums - logits[np.arange(len(ids) - 1), ids[1:]]
    bits_per_byte = nats.sum() / math.log(2) / len(UNSEEN.encode())
    assert bits_per_byte < baselines["token_bigram"]["bits_per_byte"] / 1.5


def test_the_card_states_what_was_measured(repository: Path) -> None:
    results = repository / "training" / "results"
    formats, baselines, run = (json.loads((results / f"{n}.json").read_text()) for n in ("formats", "baselines", "run"))
    figures = [row["bits_per_byte"]["all"] for row in formats.values()]
    figures += [baseline["bits_per_byte"] for baseline in baselines.values()]
    figures += [run["steps"], run["best_step"], run["seconds"]]
    card = (repository / "training" / "MODEL_CARD.md").read_text().replace(",", "")
    assert [figure for figure in figures if str(figure) not in card] == []
    assert {row["load"]["unused_experts"] for row in formats.values()} == {0}
