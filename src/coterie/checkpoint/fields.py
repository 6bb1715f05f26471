"""Typed reading of a config's keys: each key once, with its range, and nothing left over in silence.

A family reads its section through one `Fields` and ends with `finish`, which refuses what nobody read. So a key that
would change the mathematics is either read, or demanded to have the one value that the family computes (`must_be`), or
refused. Python's `True == 1` and a float where an integer belongs are errors, with the key's name.
"""

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Literal, TypeAlias, TypeVar

from coterie.checkpoint.files import show
from coterie.errors import ConfigError


class _Required(Enum):
    TOKEN = 0


REQUIRED: Final = _Required.TOKEN
_Missing: TypeAlias = Literal[_Required.TOKEN]
_T = TypeVar("_T")
_D = TypeVar("_D")

# fmt: off
GENERIC_KEYS = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "_num_labels",
    "add_cross_attention", "architectures", "attention_dropout", "attn_implementation", "bad_words_ids",
    "begin_suppress_tokens", "bos_token_id", "cache_implementation", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "embd_pdrop", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "head_dropout", "hidden_dropout", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder",
    "label2id", "length_penalty", "max_length", "max_position_embeddings", "max_window_layers", "min_length",
    "model_type", "moe_implementation", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_router_logits", "output_scores",
    "pad_token_id", "prefix", "pretraining_tp", "problem_type", "pruned_heads", "quantization",
    "quantization_config", "remove_invalid_values", "repetition_penalty", "resid_pdrop", "return_dict",
    "return_dict_in_generate", "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef", "sep_token_id",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "typical_p", "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache",
))
# fmt: on
"""Keys that transformers writes for training, sampling defaults or its own book-keeping: none changes a logit."""


class Fields:
    """The keys of one object of a config. `where` opens every message, for example "config.json: text_config"."""

    def __init__(self, values: Mapping[str, Any], where: str = "config.json") -> None:
        self.values = values
        self.where = where
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Is the key there with a value other than null? Counts as reading it."""
        self._read.add(key)
        return self.values.get(key) is not None

    def integer(self, *keys: str, low: int = 1, high: int = 2**31 - 1, default: _D | _Missing = REQUIRED) -> int | _D:
        """An integer in [low, high]. Several `keys` are names of one thing in the two dialects and must agree."""
        key, value = self._value(keys)
        if value is None:
            return self._default(keys, default)
        if type(value) is not int:
            raise self._wrong(key, value, f"an integer from {low} to {high}")
        if not low <= value <= high:
            raise self._wrong(key, value, f"an integer from {low} to {high}", "config_range")
        return value

    def number(
        self, *keys: str, low: float, high: float, above: bool = False, default: _D | _Missing = REQUIRED
    ) -> float | _D:
        """A finite number in [low, high], or in (low, high] with `above`; integers are taken as numbers."""
        key, value = self._value(keys)
        if value is None:
            return self._default(keys, default)
        expected = f"a number {'above' if above else 'from'} {low} {'up ' if above else ''}to {high}"
        if type(value) not in (int, float):
            raise self._wrong(key, value, expected)
        number = float(value)
        if not math.isfinite(number) or not low <= number <= high or (above and number == low):
            raise self._wrong(key, value, expected, "config_range")
        return number

    def boolean(self, *keys: str, default: _D | _Missing = REQUIRED) -> bool | _D:
        """true or false; 0 and 1 are refused."""
        key, value = self._value(keys)
        if value is None:
            return self._default(keys, default)
        if type(value) is not bool:
            raise self._wrong(key, value, "true or false")
        return value

    def choice(self, *keys: str, options: Collection[str], default: _D | _Missing = REQUIRED) -> str | _D:
        """One of the named options."""
        key, value = self._value(keys)
        if value is None:
            return self._default(keys, default)
        if not isinstance(value, str) or value not in options:
            raise self._wrong(key, value, f"one of {', '.join(sorted(options))}", "config_choice")
        return value

    def choices(
        self, *keys: str, options: Collection[str], length: int, default: _D | _Missing = REQUIRED
    ) -> tuple[str, ...] | _D:
        """`length` names, each one of the options."""
        key, value = self._value(keys)
        if value is None:
            return self._default(keys, default)
        items = self._list(key, value)
        if len(items) != length:
            raise self._wrong(key, value, f"{length} names, not {len(items)}", "config_length")
        for item in items:
            if not isinstance(item, str) or item not in options:
                raise self._wrong(key, item, f"names out of {', '.join(sorted(options))}", "config_choice")
        return tuple(items)

    def integers(
        self, *keys: str, low: int, high: int, max_length: int, default: _D | _Missing = REQUIRED
    ) -> tuple[int, ...] | _D:
        """Up to `max_length` integers in [low, high]; a bare integer is taken as a list of one."""
        key, value = self._value(keys)
        if value is None:
            return self._default(keys, default)
        items = [value] if type(value) is int else self._list(key, value)
        if len(items) > max_length:
            raise self._wrong(key, value, f"at most {max_length} integers", "config_length")
        for item in items:
            if type(item) is not int:
                raise self._wrong(key, item, f"integers from {low} to {high}")
            if not low <= item <= high:
                raise self._wrong(key, item, f"integers from {low} to {high}", "config_range")
        return tuple(items)

    def section(self, *keys: str) -> "Fields | None":
        """The object under the key, to be read and finished in turn; None if it is absent or null."""
        key, value = self._value(keys)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Fields(value, f"{self.where}: {key}")

    def must_be(self, key: str, *allowed: object, reason: str) -> None:
        """The key is absent, null, or has one of the `allowed` values, the only ones that are computed."""
        self._read.add(key)
        value = self.values.get(key)
        if value is None or any(type(value) is type(option) and value == option for option in allowed):
            return
        expected = " or ".join(map(show, allowed)) or "no such key"
        raise ConfigError(
            f"{self.where}: found {key} = {show(value)}, expected {expected}: {reason}",
            code="config_unsupported",
        )

    def ignore(self, *keys: str) -> None:
        """These keys do not change a logit of this family."""
        self._read.update(keys)

    def finish(self) -> None:
        """`ConfigError` for the first key that nobody read, unless it is generic or off (null, false, empty)."""
        for key, value in self.values.items():
            if key in self._read or key in GENERIC_KEYS or value is None or value is False or value in ("", [], {}):
                continue
            near = difflib.get_close_matches(key, self._read, n=1)
            hint = f" ({near[0]}?)" if near else ""
            raise ConfigError(
                f"{self.where}: found the unknown key {show(key)} = {show(value)}, expected only keys with a known "
                f"meaning{hint}; remove it from the file if it does not change what the model computes",
                code="unknown_key",
            )

    def error(self, key: str, expected: str, *, code: str = "config_contradiction") -> ConfigError:
        """A `ConfigError` about the value of `key`, for rules between several keys."""
        return self._wrong(key, self.values.get(key), expected, code)

    def _value(self, keys: Sequence[str]) -> tuple[str, Any]:
        self._read.update(keys)
        present = [(key, self.values[key]) for key in keys if self.values.get(key) is not None]
        if not present:
            return keys[0], None
        (first, value), *others = present
        for key, other in others:
            if type(other) is not type(value) or other != value:
                raise ConfigError(
                    f"{self.where}: found {first} = {show(value)} and {key} = {show(other)}, two names of "
                    "one thing, expected the same; keep the one that is true",
                    code="config_contradiction",
                )
        return first, value

    def _default(self, keys: Sequence[str], default: _D | _Missing) -> _D:
        if isinstance(default, _Required):
            raise ConfigError(
                f"{self.where}: found no {' or '.join(keys)}, expected this key; the config is incomplete or of "
                "another kind of model",
                code="config_missing",
            )
        return default

    def _list(self, key: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def _wrong(self, key: str, value: Any, expected: str, code: str = "config_type") -> ConfigError:
        return ConfigError(
            f"{self.where}: found {key} = {show(value)}, expected {expected}; correct it or fetch the file again",
            code=code,
        )
