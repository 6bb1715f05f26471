"""The tokenizer of a checkpoint: tokenizer.json, read strictly and checked against the model, and where texts end."""

import functools
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coterie.checkpoint import Checkpoint
from coterie.checkpoint.strict_json import parse
from coterie.errors import CheckpointError, ConfigError
from coterie.runtime.detokenizer import Detokenizer, spelling
from coterie.runtime.request import check_encodable

_FILE = "tokenizer.json"


class Tokenizer:
    """Text to token ids and back. `eos_ids` are the tokens that end a text."""

    def __init__(self, definition: bytes, *, vocab_size: int, eos_ids: Iterable[int], where: str = _FILE) -> None:
        """`definition` is the content of a tokenizer.json; `vocab_size` the number of rows of the model's embedding."""
        self.vocab_size = vocab_size
        self.eos_ids = frozenset(eos_ids)
        fields = parse(definition, where, CheckpointError, prefix="tokenizer")
        if not isinstance(fields, dict):
            raise _damaged(where, f"a JSON {type(fields).__name__}, expected an object")
        special = _check_definition(fields, vocab_size, where)
        self._spelling = spelling(fields.get("decoder"))
        self._inner = _build(definition, where)
        self._special = frozenset(special)
        self._bytes_of = functools.cache(self._spell)
        self._all_bytes_of = functools.cache(self._spell_any)
        self._encoding = threading.Lock()
        self._check_ids(where)

    def encode(self, text: str, *, special_tokens: bool = False, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, with what the tokenizer puts around a text (a beginning-of-text token).

        special_tokens: a special token spelled out in `text` becomes that token; by default it stays text.
        add_special_tokens: False puts nothing around it, for a text that has everything already.
        """
        check_encodable("text", text)
        with self._encoding:
            self._inner.encode_special_tokens = not special_tokens
            return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return str(self._inner.decode(list(ids), skip_special_tokens=True))

    def detokenizer(self, *, skip_special_tokens: bool = True) -> Detokenizer:
        """A stream from ids to the text that continues a prompt; special tokens have none, or are spelled in it."""
        return Detokenizer(self._bytes_of if skip_special_tokens else self._all_bytes_of)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling in the vocabulary; None for any other text."""
        if any("\ud800" <= character <= "\udfff" for character in token):
            return None  # half of a surrogate pair, which no vocabulary can hold
        found: int | None = self._inner.token_to_id(token)
        return found

    def vocabulary(self) -> dict[str, int]:
        """Every token's spelling and id, added tokens included."""
        return dict(self._inner.get_vocab(with_added_tokens=True))

    def label(self, token_id: int) -> str:
        """A token as people read it: its text, special tokens by name, bytes that are no text alone as \\xNN."""
        if token_id in self._special:
            return str(self._inner.id_to_token(token_id))
        return self._spell(token_id).decode("utf-8", "backslashreplace")

    def _spell(self, token_id: int) -> bytes:
        return b"" if token_id in self._special else self._spell_any(token_id)

    def _spell_any(self, token_id: int) -> bytes:
        token = self._inner.id_to_token(token_id)
        if token is None or token_id in self._special:
            return b"" if token is None else str(token).encode()
        return self._spelling.bytes_of(token)

    def _check_ids(self, where: str) -> None:
        vocabulary: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise _damaged(where, "no tokens, expected a vocabulary")
        token, highest = max(vocabulary.items(), key=lambda item: item[1])
        if highest >= self.vocab_size:
            raise CheckpointError(
                f"{where}: token {token[:40]!r} has id {highest}, expected ids below {self.vocab_size}, the rows of "
                "the embedding; the tokenizer belongs to another model",
                code="tokenizer_ids",
            )
        if len(set(vocabulary.values())) != len(vocabulary):
            raise _damaged(where, "two tokens with the same id, expected one token an id")


def _check_definition(fields: dict[str, Any], vocab_size: int, where: str) -> list[int]:
    """Refuse what the tokenizers library would accept or choke on; returns the ids of special tokens."""
    added = fields.get("added_tokens") or []
    model = fields.get("model")
    if not isinstance(added, list) or not isinstance(model, dict):
        raise _damaged(where, "no model or added_tokens of another kind, expected an object and a list")
    if len(added) > vocab_size:
        raise _damaged(where, f"{len(added)} added tokens, expected at most the {vocab_size} rows of the embedding")
    ids = [token.get("id") if isinstance(token, dict) else None for token in added]
    if any(type(i) is not int or i < 0 for i in ids) or len(set(ids)) != len(ids):
        raise _damaged(where, "added tokens with wrong or equal ids, expected a number of its own for each")
    vocabulary = model.get("vocab")
    if model.get("byte_fallback") and isinstance(vocabulary, dict):
        bad = next((token for token in vocabulary if token.startswith("<0x") and not _is_byte_token(token)), None)
        if bad is not None:
            raise _damaged(where, f"the byte token {bad[:40]!r}, expected <0x00> to <0xFF>")
    return [token["id"] for token in added if token.get("special") is True]


def _is_byte_token(token: str) -> bool:
    digits = token[3:-1]
    return len(token) == 6 and token[-1] == ">" and all(digit in "0123456789ABCDEFabcdef" for digit in digits)


def _build(definition: bytes, where: str) -> Any:
    from tokenizers import Tokenizer as Library

    try:
        inner = Library.from_str(definition.decode("utf-8"))
    except Exception as cause:
        raise _damaged(where, f"a definition that the tokenizers library refuses ({str(cause)[:200]})") from cause
    except BaseException as cause:
        # A panic in the library's Rust code arrives as an exception outside of Exception.
        if type(cause).__name__ != "PanicException":
            raise
        raise _damaged(where, f"a definition on which the tokenizers library fails ({str(cause)[:200]})") from cause
    # What a file says about truncation would shorten prompts in silence.
    inner.no_truncation()
    inner.no_padding()
    return inner


def _damaged(where: str, found: str) -> CheckpointError:
    return CheckpointError(f"{where}: found {found}; fetch the file again", code="tokenizer_damaged")


def read_tokenizer(checkpoint: Checkpoint, vocab_size: int) -> Tokenizer:
    """The checkpoint's tokenizer. `CheckpointError` if it is missing, damaged or made for another vocabulary."""
    where = str(checkpoint.path / _FILE)
    definition = checkpoint.read_member(_FILE)
    if definition is None:
        raise CheckpointError(
            f"{where}: the file is missing, expected beside the weights; fetch the whole checkpoint (a tokenizer in "
            "another form has to be saved as tokenizer.json first)",
            code="tokenizer_missing",
        )
    tokenizer = Tokenizer(definition, vocab_size=vocab_size, eos_ids=(), where=where)
    tokenizer.eos_ids = frozenset(_eos_ids(checkpoint, tokenizer))
    return tokenizer


def _eos_ids(checkpoint: Checkpoint, tokenizer: Tokenizer) -> list[int]:
    """Where texts end: generation_config.json's word, else config.json's, else the tokenizer's own."""
    nested = checkpoint.config.get("text_config")
    sources = (
        ("generation_config.json", _generation_config(checkpoint).get("eos_token_id")),
        ("config.json", checkpoint.config.get("eos_token_id")),
        ("config.json, text_config", nested.get("eos_token_id") if isinstance(nested, Mapping) else None),
    )
    for where, value in sources:
        if value is not None:
            return _checked_eos(value, tokenizer.vocab_size, f"{checkpoint.path}: {where}")
    named = _named_eos(checkpoint, tokenizer)
    if named is not None:
        return [named]
    raise ConfigError(
        f"{checkpoint.path}: found no end-of-text token, expected eos_token_id in generation_config.json or "
        "config.json, or eos_token in tokenizer_config.json; add the one the model was trained with",
        code="eos_missing",
    )


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    name = "generation_config.json"
    content = checkpoint.read_member(name)
    value = {} if content is None else parse(content, str(checkpoint.path / name), ConfigError, prefix="config")
    if not isinstance(value, dict):
        raise ConfigError(f"{checkpoint.path / name}: found no JSON object, expected one", code="config_type")
    return value


def _named_eos(checkpoint: Checkpoint, tokenizer: Tokenizer) -> int | None:
    """The id of `eos_token` in tokenizer_config.json, which is a text or an object with the text as its `content`."""
    named = read_lenient_object(checkpoint, "tokenizer_config.json").get("eos_token")
    if isinstance(named, Mapping):
        named = named.get("content")
    return tokenizer.id_of(named) if isinstance(named, str) else None


def read_lenient_object(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The object in a file of the tokenizer's, empty if there is no file; `ConfigError` if it is no JSON object.

    Read leniently: these files are full of numbers of 30 digits ("no limit"), and only texts are wanted from them.
    """
    content = checkpoint.read_member(name)
    try:
        value = {} if content is None else json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise ConfigError(
            f"{checkpoint.path / name}: found broken JSON; fetch it again", code="config_not_json"
        ) from cause
    if not isinstance(value, dict):
        raise ConfigError(f"{checkpoint.path / name}: found no JSON object, expected one", code="config_type")
    return value


def _checked_eos(value: Any, vocab_size: int, where: str) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    if not ids or any(type(i) is not int or not 0 <= i < vocab_size for i in ids):
        raise ConfigError(
            f"{where}: eos_token_id is {str(value)[:60]}, expected ids from 0 to {vocab_size - 1}; correct it",
            code="eos_ids",
        )
    return ids
