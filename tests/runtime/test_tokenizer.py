"""The tokenizer of a checkpoint: what it does with text, and every damaged definition refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coterie.checkpoint import open_checkpoint
from coterie.errors import CheckpointError, ConfigError, CoterieError, RequestError
from coterie.runtime.tokenizer import Tokenizer, read_tokenizer
from models import tiny
from runtime import tokenizers_made as made


def tokenizer_of(definition: Any, vocab_size: int = 512) -> Tokenizer:
    return Tokenizer(made.dumped(definition), vocab_size=vocab_size, eos_ids=[1])


def test_special_tokens_in_text_stay_text_unless_asked_for() -> None:
    tokenizer = tokenizer_of(made.byte_fallback())
    plain = tokenizer.encode("a<eos>b")
    assert 1 not in plain
    assert plain[0] == 2
    assert "".join(map(tokenizer.detokenizer().feed, plain)) == "a<eos>b"
    assert 1 in tokenizer.encode("a<eos>b", special_tokens=True)
    assert tokenizer.encode("a<eos>b") == plain


def test_what_a_file_says_about_truncation_is_not_obeyed() -> None:
    definition = made.byte_level()
    definition["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    definition["padding"] = {
        "strategy": {"Fixed": 100},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    ids = tokenizer_of(definition).encode("def read_lines(path): a, b, c")
    assert ids == tokenizer_of(made.byte_level()).encode("def read_lines(path): a, b, c")
    assert 3 < len(ids) < 100


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(RequestError) as refused:
        tokenizer_of(made.byte_level()).encode("a\ud800b")
    assert refused.value.code == "request_encoding"


def edited(change: Callable[[dict[str, Any]], Any]) -> bytes:
    definition = made.byte_level()
    change(definition)
    return made.dumped(definition)


def _without_key(definition: dict[str, Any]) -> None:
    del definition["model"]


def _duplicate_added(definition: dict[str, Any]) -> None:
    definition["added_tokens"][1]["id"] = 0


def _negative_added(definition: dict[str, Any]) -> None:
    definition["added_tokens"][1]["id"] = -1


def _merge_of_nothing(definition: dict[str, Any]) -> None:
    definition["model"]["merges"].insert(0, ["qqqq", "zzzz"])


def _two_of_one_id(definition: dict[str, Any]) -> None:
    first, second = list(definition["model"]["vocab"])[10:12]
    definition["model"]["vocab"][first] = definition["model"]["vocab"][second]


def _many_added(definition: dict[str, Any]) -> None:
    one = definition["added_tokens"][0]
    definition["added_tokens"] = [{**one, "id": i, "content": f"<{i}>"} for i in range(600)]


def _bad_byte_token() -> bytes:
    definition = made.byte_fallback()
    definition["model"]["vocab"]["<0x-1>"] = len(definition["model"]["vocab"])
    return made.dumped(definition)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "tokenizer_not_json"),
    "truncated": (made.dumped(made.byte_level())[:-100], "tokenizer_not_json"),
    "not UTF-8": (b'{"a": "\xff"}', "tokenizer_not_utf8"),
    "a list": (b"[]", "tokenizer_damaged"),
    "a page of HTML": (b"<html>", "tokenizer_not_json"),
    "the same key twice": (b'{"model": {"vocab": {"a": 0, "a": 1}}}', "tokenizer_duplicate_key"),
    "no model": (edited(_without_key), "tokenizer_damaged"),
    "two added tokens of one id": (edited(_duplicate_added), "tokenizer_damaged"),
    "a negative id": (edited(_negative_added), "tokenizer_damaged"),
    "a merge of unknown tokens": (edited(_merge_of_nothing), "tokenizer_damaged"),
    "two tokens of one id": (edited(_two_of_one_id), "tokenizer_damaged"),
    "more added tokens than rows": (edited(_many_added), "tokenizer_damaged"),
    "an id that is a float": (edited(lambda d: d["model"]["vocab"].update({"zz": 1.5})), "tokenizer_damaged"),
    "an id beyond the rows": (edited(lambda d: d["model"]["vocab"].update({"zz": 512})), "tokenizer_ids"),
    "an id beyond 32 bits": (edited(lambda d: d["model"]["vocab"].update({"zz": 2**40})), "tokenizer_damaged"),
    "a byte token that is none": (_bad_byte_token(), "tokenizer_damaged"),
    "no vocabulary": (
        edited(lambda d: d.update(added_tokens=[], model={"type": "BPE", "vocab": {}, "merges": []})),
        "",
    ),
    "nested without end": (b"[" * 100_000, "tokenizer_nested"),
    "a model of another type": (edited(lambda d: d["model"].update(type="Nonesuch")), "tokenizer_damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_definition_is_refused(name: str) -> None:
    definition, code = DAMAGED[name]
    with pytest.raises(CoterieError) as refused:
        Tokenizer(definition, vocab_size=512, eos_ids=[1])
    assert isinstance(refused.value, CheckpointError)
    assert refused.value.code == (code or "tokenizer_damaged")
    assert len(str(refused.value)) < 600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(tiny.checkpoint("qwen3_moe", "4 bits g64"), copy)
    (copy / "generation_config.json").write_text("{}")
    return copy


def rewrite(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({key: value for key, value in {**content, **fields}.items() if value is not ...}))


def eos_ids(folder: Path) -> frozenset[int]:
    with open_checkpoint(folder, scan=False) as checkpoint:
        return read_tokenizer(checkpoint, tiny.VOCABULARY).eos_ids


def test_where_texts_end_is_read_in_the_order_of_authority(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", eos_token="<bos>")
    assert eos_ids(folder) == {1}
    rewrite(folder / "config.json", eos_token_id=None)
    assert eos_ids(folder) == {2}
    rewrite(folder / "tokenizer_config.json", eos_token={"content": "<pad>", "lstrip": False})
    assert eos_ids(folder) == {0}
    rewrite(folder / "config.json", eos_token_id=[5, 6])
    rewrite(folder / "generation_config.json", eos_token_id=[7, 1])
    assert eos_ids(folder) == {7, 1}


@pytest.mark.parametrize("value", [-1, [1, -1], [], 512, 2**40, 1.0, "1", True, [None]])
def test_ends_that_are_no_tokens_are_refused(folder: Path, value: Any) -> None:
    rewrite(folder / "generation_config.json", eos_token_id=value)
    with pytest.raises(ConfigError) as refused:
        eos_ids(folder)
    assert refused.value.code == "eos_ids"


@pytest.mark.parametrize("eos_token", [..., "\udc80", 5])
def test_no_end_at_all_is_refused(folder: Path, eos_token: object) -> None:
    rewrite(folder / "config.json", eos_token_id=None)
    rewrite(folder / "tokenizer_config.json", eos_token=eos_token)
    with pytest.raises(ConfigError) as refused:
        eos_ids(folder)
    assert refused.value.code == "eos_missing"


def test_a_missing_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as refused:
        eos_ids(folder)
    assert refused.value.code == "tokenizer_missing"
