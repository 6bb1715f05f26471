"""config.json: its frame is read strictly, nothing in it is executed, absurd values are refused by their key's name."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.attacks import folder, one
from coterie.checkpoint import Fields, declared_dtype, open_checkpoint, per_layer, read_config, read_member, rope
from coterie.checkpoint.dialect import with_published_keys
from coterie.errors import CheckpointError, ConfigError, CoterieError, UnsupportedError


def with_config(path: Path, config: Any) -> Path:
    """A checkpoint that is correct but for this config, given as a value or as bytes."""
    content = config if isinstance(config, bytes) else json.dumps(config).encode()
    return folder(path, {"model.safetensors": one()}, config=content)


BAD_TYPES = (
    "", "Qwen3", "qwen3.moe", "../qwen", "a/b", "a\\b", "a b", "a\n", "_x", "\u0430bc", "x" * 65, 5, None, ["a"], True,
)  # fmt: skip
CODE = (("model_file", "evil.py"), ("auto_map", {"AutoModel": "evil.M"}), ("custom_pipelines", {}), ("auto_map", ""))
DEEP = b'{"model_type":"x","a":' + b"[" * 70 + b"]" * 70 + b"}"


@pytest.mark.parametrize(
    ("config", "code", "says"),
    [
        (b"", "config_not_json", "JSON"),
        (b"{", "config_not_json", "JSON"),
        (b"\xef\xbb\xbf{}", "config_not_json", "JSON"),
        (b'{"a": "\xff"}', "config_not_utf8", "UTF-8"),
        (b"[]", "config_not_object", "object"),
        (b'{"hidden_size": 8, "hidden_size": 16}', "config_duplicate_key", "hidden_size"),
        (b'{"text_config": {"a": 1, "a": 1}}', "config_duplicate_key", "'a'"),
        (b'{"a": NaN}', "config_number", "NaN"),
        (b'{"a": -Infinity}', "config_number", "Infinity"),
        (b'{"a": 1e400}', "config_number", "1e400"),
        (b'{"a": 1' + b"0" * 400 + b"}", "config_number", "64 bits"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "config_number", "64 bits"),
        (b"[" * 100_000, "config_nested", "nesting"),
        (DEEP, "config_nested", "64"),
        (b'{"a": "' + b"x" * 4_000_000 + b'"}', "file_too_large", "4000000"),
        ({}, "model_type", "model_type"),
        *[({"model_type": name}, "model_type", "small letters") for name in BAD_TYPES],
        ({"model_type": "x", "text_config": {"model_type": "../y"}}, "model_type", "text_config"),
        ({"model_type": "x", "text_config": [1]}, "config_type", "text_config"),
        *[({"model_type": "x", key: value}, "custom_code", key) for key, value in CODE],
        *[({"model_type": "x", "text_config": {key: value}}, "custom_code", key) for key, value in CODE],
        ({"model_type": "x", "quantization": {"bits": 7}}, "quantization_format", "bits"),
        ({"model_type": "x", "quantization_config": {"quant_method": "awq"}}, "quant_method", "awq"),
    ],
)  # fmt: skip
def test_refused_by_name(config: Any, code: str, says: str, tmp_path: Path) -> None:
    path = with_config(tmp_path / "m", config)
    (path / "evil.py").write_text("raise SystemExit('executed')")
    with pytest.raises(CoterieError) as caught:
        open_checkpoint(path)
    assert caught.value.code == code, caught.value
    for said in (str(path / "config.json"), says):
        assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_a_config_that_is_missing_or_no_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", {"model.safetensors": one()}, config=None)
    with pytest.raises(ConfigError) as caught:
        open_checkpoint(path)
    assert caught.value.code == "config_missing_file"
    (path / "config.json").mkdir()
    with pytest.raises(CheckpointError) as other:
        open_checkpoint(path)
    assert other.value.code == "not_a_file"


def test_a_modelopt_file_is_named(tmp_path: Path) -> None:
    path = with_config(tmp_path / "m", {"model_type": "x"})
    (path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="ModelOpt"):
        read_config(path)


def test_companions_are_read_with_a_limit(tmp_path: Path) -> None:
    """Tokenizers and templates: read as bytes by name, never from outside the folder, never more than the limit."""
    path = with_config(tmp_path / "m", {"model_type": "x"})
    (path / "tokenizer.json").write_bytes(b"x" * 100)
    assert read_member(path, "tokenizer.json") == b"x" * 100
    assert read_member(path, "chat_template.jinja") is None
    with pytest.raises(CheckpointError) as caught:
        read_member(path, "tokenizer.json", limit=99)
    assert caught.value.code == "file_too_large"
    (tmp_path / "secret").write_bytes(b"secret")
    (path / "chat_template.jinja").symlink_to(tmp_path / "secret")
    for name in ("chat_template.jinja", "../secret"):
        with pytest.raises(CheckpointError) as caught:
            read_member(path, name)
        assert caught.value.code == "path_escapes"
    (path / "merges.txt").mkdir()
    with pytest.raises(CheckpointError, match="a directory"):
        read_member(path, "merges.txt")


BAD_INTEGERS: list[Any] = [0, -1, 10**9, 2**63 - 1, 8.0, "8", True, False, [8], {}, ""]


@pytest.mark.parametrize("value", BAD_INTEGERS, ids=repr)
def test_integers_are_integers(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Fields({"n_layers": value}, "config.json").integer("n_layers", low=1, high=1000)
    assert caught.value.code == ("config_range" if type(value) is int else "config_type")
    for said in ("config.json", "n_layers", "1 to 1000"):
        assert said in str(caught.value)


@pytest.mark.parametrize("value", [0, 0.0, -1.0, 1e13, "1e4", True, [1.0], {}], ids=repr)
def test_numbers_are_numbers(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"rope_theta.*above 0"):
        Fields({"rope_theta": value}).number("rope_theta", low=0, high=1e12, above=True)


@pytest.mark.parametrize("value", [0, 1, "true", "", [], 1.0], ids=repr)
def test_booleans_are_booleans(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"flag.*true or false"):
        Fields({"flag": value}).boolean("flag")


def test_good_fields() -> None:
    fields = Fields(
        {"a": 3, "b": 4, "c": 0.5, "d": True, "e": "x", "f": ["x", "y"], "g": 7, "h": [1, 2], "i": {"j": 1}}
    )
    assert fields.integer("a") == 3
    assert fields.number("b", low=0, high=9) == 4.0
    assert fields.number("c", low=0, high=9) == 0.5
    assert fields.boolean("d") is True
    assert fields.choice("e", options=("x", "y")) == "x"
    assert fields.choices("f", options=("x", "y"), length=2) == ("x", "y")
    assert fields.integers("g", low=0, high=9, max_length=2) == (7,)
    assert fields.integers("h", low=0, high=9, max_length=2) == (1, 2)
    inner = fields.section("i")
    assert inner is not None
    assert inner.integer("j") == 1
    inner.finish()
    fields.finish()
    assert fields.integer("z", default=None) is None
    assert fields.section("z") is None
    assert "z" not in fields


@pytest.mark.parametrize(
    ("read", "code"),
    [
        (lambda f: f.integer("none"), "config_missing"),
        (lambda f: f.integer("null"), "config_missing"),
        (lambda f: f.choice("text", options=("a", "b")), "config_choice"),
        (lambda f: f.choice("number", options=("a", "b")), "config_choice"),
        (lambda f: f.choices("list", options=("a",), length=3), "config_length"),
        (lambda f: f.choices("list", options=("a",), length=2), "config_choice"),
        (lambda f: f.choices("text", options=("a",), length=2), "config_type"),
        (lambda f: f.integers("numbers", low=0, high=5, max_length=3), "config_range"),
        (lambda f: f.integers("numbers", low=0, high=50, max_length=1), "config_length"),
        (lambda f: f.integers("list", low=0, high=50, max_length=5), "config_type"),
        (lambda f: f.section("list"), "config_type"),
        (lambda f: f.integer("number", "other"), "config_contradiction"),
        (lambda f: f.integer("number", "float"), "config_contradiction"),
        (lambda f: f.must_be("flag", False, reason="there are no biases"), "config_unsupported"),
        (lambda f: f.must_be("one", False, True, reason="1 is not true"), "config_unsupported"),
    ],
)
def test_bad_fields(read: Any, code: str) -> None:
    values = {
        "text": "z", "number": 3, "other": 4, "float": 3.0, "one": 1, "flag": True, "null": None,
        "list": ["a", "b"], "numbers": [1, 9],
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        read(Fields(values, "here"))
    assert caught.value.code == code
    assert str(caught.value).startswith("here: found")
    assert "expected" in str(caught.value)


def test_unknown_keys_are_refused_unless_they_are_off() -> None:
    off = {"a": None, "b": False, "c": "", "d": [], "e": {}, "torch_dtype": "bfloat16", "use_cache": True}
    for key, value in (("hiden_size", 8), ("attn_scale", 0), ("x", 0.0), ("alpha", True), ("b", "on")):
        fields = Fields({**off, "hidden_size": 8, key: value})
        assert fields.integer("hidden_size") == 8
        with pytest.raises(ConfigError) as caught:
            fields.finish()
        assert caught.value.code == "unknown_key"
        assert repr(key) in str(caught.value)
        assert ("hidden_size?" in str(caught.value)) == (key == "hiden_size")
    fields = Fields({**off, "hidden_size": 8, "known": 3})
    fields.integer("hidden_size")
    fields.ignore("known")
    fields.must_be("b", False, reason="it is not computed")
    fields.finish()


YARN = {"rope_type": "yarn", "factor": 2.0}
FULL = {"rope_theta": 1e6, "rope_type": "proportional", "partial_rotary_factor": 0.25}
TWO_KINDS = {"rope_parameters": {"full": FULL, "sliding": {"rope_theta": 1e4}}, "rope_theta": 5e5}


@pytest.mark.parametrize(
    ("config", "layer", "expected"),
    [
        ({"rope_theta": 1e6}, None, ("default", 1e6, 1.0)),
        ({"rope_theta": 10_000, "rope_scaling": None}, None, ("default", 1e4, 1.0)),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "yarn", "factor": 4.0}}, None, ("yarn", 1e4, 1.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, None, ("default", 1e6, 1.0)),
        ({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e6}, None, ("default", 1e6, 1.0)),
        ({"rope_parameters": {"rope_theta": 1e4, **YARN}, "rope_scaling": YARN}, None, ("yarn", 1e4, 1.0)),
        (TWO_KINDS, "full", ("proportional", 1e6, 0.25)),
        (TWO_KINDS, "sliding", ("default", 1e4, 1.0)),
        ({}, None, ("default", 7.0, 1.0)),
    ],
)
def test_rotary_embeddings_in_both_dialects(config: Any, layer: str | None, expected: tuple[str, float, float]) -> None:
    read = rope(Fields(config), layer, default_base=7.0)
    assert (read.kind, read.base, read.partial_rotary_factor) == expected


@pytest.mark.parametrize(
    "config",
    [{"rope_theta": value} for value in (0, -1.0, 1e300, "10000", True, [1e4])]
    + [{"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e4}]
    + [{"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "yarn", "factor": 4.0}}]
    + [{"rope_theta": 1e4, "rope_scaling": {"type": "spiral"}}, {"rope_theta": 1e4, "rope_scaling": "yarn"}]
    + [{"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": value}} for value in (0, 1.5, "0.5")]
    + [{}, {"rope_parameters": []}],
)
def test_absurd_rotary_embeddings(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"rope|partial_rotary_factor"):
        rope(Fields(config))


def test_keys_of_single_layers() -> None:
    layers = per_layer(Fields({"per_layer_config": {"1": {"head_dim": 64}}}), 3)
    assert [layer.integer("head_dim", default=32) for layer in layers] == [32, 64, 32]
    assert len(per_layer(Fields({}), 2)) == 2
    for key, value in (("3", {}), ("-1", {}), ("01", {}), ("x", {}), ("1" * 20, {}), ("\u0661", {}), ("1", 5)):
        with pytest.raises(ConfigError, match="per_layer_config"):
            per_layer(Fields({"per_layer_config": {key: value}}), 3)


def test_the_declared_dtype() -> None:
    assert declared_dtype({"torch_dtype": "bfloat16"}) == "bfloat16"
    assert declared_dtype({"dtype": "float32"}) == "float32"
    assert declared_dtype({"text_config": {"dtype": "float16"}}) == "float16"
    assert declared_dtype({}) is None
    for bad in ({"dtype": "int8"}, {"dtype": 5}, {"dtype": "float32", "torch_dtype": "bfloat16"}):
        with pytest.raises(ConfigError, match="dtype"):
            declared_dtype(bad)


def test_published_keys_are_added_and_nothing_else_changes() -> None:
    flat = {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}, "num_local_experts": 8}
    added = {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "num_experts": 8}
    assert with_published_keys(flat) == flat | added
    full = {"head_dim": 64, "num_key_value_heads": 1}
    text = {"vocab_size": 9, "layer_types": ["sliding_attention", "full_attention"], "per_layer_config": {"1": full}}
    nested = with_published_keys({"model_type": "gemma4", "text_config": text})
    assert nested["vocab_size"] == 9
    assert nested["text_config"] == text | {"global_head_dim": 64, "num_global_key_value_heads": 1}
    old = {"rope_theta": 1e4, "rope_scaling": None, "num_experts": 4}
    assert with_published_keys(old) == old
    uneven = {**text, "per_layer_config": {"0": full}}
    assert with_published_keys(uneven) == uneven


def test_fields_take_numpy_for_what_it_is() -> None:
    """JSON knows no NumPy scalars; one that slips in is refused and not taken for an integer."""
    with pytest.raises(ConfigError):
        Fields({"a": np.int64(3)}).integer("a")
