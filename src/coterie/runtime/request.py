"""What a caller may ask of a generation, checked at the door: a refusal is a `RequestError` that names the field."""

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

from coterie.errors import RequestError

MAX_STOPS = 64
MAX_STOP_LENGTH = 4096
MAX_LOGPROBS = 100
"""Alternatives at most; a whole vocabulary for each token would be the logits, and those `Model.logits` gives."""

MAX_SHIFT = 1e6
"""Bound of penalties and biases: far beyond any use, and sums and products with it cannot overflow."""

_SHIFT = "from -1e6 to 1e6; 0 changes nothing"
_BIAS = "from -1e6 to 1e6, or -inf, which bans the token"


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request. temperature 0 is greedy, seed None a fresh one, logprobs None means none.

    No restriction: top_k 0, top_p 1, min_p 0. No effect: repetition_penalty 1, the other penalties 0.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    skip_special_tokens: bool = True


class Options(TypedDict, total=False):
    """What a generation may be asked for; every option may be left out.

    max_tokens: make at most so many tokens (256).
    temperature: 0, the default, always takes the likeliest token; otherwise one is drawn from softmax(logits / it).
    top_k, top_p, min_p: draw only among the k likeliest tokens (0: all); of those, among the fewest that hold this
        share (1: all); of those, among the ones at least min_p times as likely as the likeliest (0: all).
    repetition_penalty, presence_penalty, frequency_penalty, logit_bias {token id: what is added to its logit, -inf bans
        it}: applied before the temperature, see `coterie.runtime.penalties` for the arithmetic. They change a greedy
        choice too.
    logprobs: give the log-probability of each token and of so many of the likeliest in its place, see
        `coterie.runtime.logprobs`; 0 is the token's own alone, None, the default, nothing.
    seed: the same one draws the same tokens; None draws others each time.
    stop: end before the first of these texts.
    skip_special_tokens: False spells special tokens in the text; by default they have none.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    logprobs: int | None
    seed: int | None
    stop: str | Sequence[str]
    skip_special_tokens: bool


def checked(options: Mapping[str, Any], *, vocab_size: int, context_length: int) -> Request:
    """The request that `options` make, or a `RequestError` for the first that is unknown or cannot be met."""
    checks: dict[str, Callable[[Any], Any]] = {
        "max_tokens": _whole("max_tokens", 1, context_length, "the model's context length"),
        "temperature": _real("temperature", 0.0, math.inf, "0 (greedy) or more"),
        "top_k": _whole("top_k", 0, vocab_size, "the vocabulary's size"),
        "top_p": _real("top_p", math.nextafter(0.0, 1.0), 1.0, "above 0 and at most 1"),
        "min_p": _real("min_p", 0.0, 1.0, "from 0 to 1"),
        "repetition_penalty": _real("repetition_penalty", 1 / MAX_SHIFT, MAX_SHIFT, "above 0; 1 changes nothing"),
        "presence_penalty": _real("presence_penalty", -MAX_SHIFT, MAX_SHIFT, _SHIFT),
        "frequency_penalty": _real("frequency_penalty", -MAX_SHIFT, MAX_SHIFT, _SHIFT),
        "logit_bias": partial(_biases, vocab_size=vocab_size),
        "logprobs": _optional(_whole("logprobs", 0, min(MAX_LOGPROBS, vocab_size), "alternatives for a token")),
        "seed": _optional(_whole("seed", 0, 2**64 - 1, "2^64 - 1")),
        "stop": _stops,
        "skip_special_tokens": _flag,
    }
    for name in options:
        if name not in checks:
            near = difflib.get_close_matches(name, checks, n=1)
            raise RequestError(
                f"{name} is no option of a generation, expected {near[0] if near else ', '.join(checks)}",
                code="request_unknown",
            )
    return Request(**{name: checks[name](value) for name, value in options.items()})


def checked_ids(token_ids: Any, vocab_size: int, context_length: int, what: str = "token_ids") -> list[int]:
    """A sequence of token ids as a list of ints: not empty, each in the vocabulary, no more than the context holds."""
    if isinstance(token_ids, str | bytes) or not isinstance(token_ids, Iterable):
        raise _refused(what, token_ids, "a sequence of integers")
    ids = []
    for position, value in enumerate(token_ids):
        if position >= context_length:
            raise RequestError(
                f"{what}: more than {context_length} tokens, expected at most the model's context length; shorten it",
                code="request_context",
            )
        try:
            index = -1 if isinstance(value, bool) else operator.index(value)
        except TypeError:
            index = -1
        if not 0 <= index < vocab_size:
            raise _refused(f"{what}[{position}]", value, f"an integer from 0 to {vocab_size - 1}")
        ids.append(index)
    if not ids:
        raise RequestError(f"{what} is empty, expected at least one token", code="request_empty")
    return ids


def _whole(name: str, low: int, high: int, high_is: str) -> Callable[[Any], int]:
    return lambda value: checked_integer(name, value, low, high, high_is)


def _real(name: str, low: float, high: float, expected: str) -> Callable[[Any], float]:
    return lambda value: _number(name, value, low, high, expected)


def _optional(check: Callable[[Any], int]) -> Callable[[Any], int | None]:
    return lambda value: None if value is None else check(value)


def checked_integer(name: str, value: Any, low: int, high: int, high_is: str) -> int:
    """`value` as an int from low to high, which is what `high_is` says; `RequestError` with the name for any other."""
    expected = f"an integer from {low} to {high} ({high_is})"
    if isinstance(value, bool):
        raise _refused(name, value, expected)
    try:
        number = operator.index(value)
    except TypeError:
        raise _refused(name, value, expected) from None
    if not low <= number <= high:
        raise _refused(name, value, expected)
    return number


def _number(name: str, value: Any, low: float, high: float, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refused(name, value, f"a number, {expected}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        raise _refused(name, value, f"a finite number, {expected}")
    return number


def _biases(logit_bias: Any, vocab_size: int) -> tuple[tuple[int, float], ...]:
    if logit_bias is None:
        return ()
    if not isinstance(logit_bias, Mapping):
        raise _refused("logit_bias", logit_bias, "a mapping of token ids to numbers")
    biases = {}
    for key, value in logit_bias.items():
        token_id = checked_integer("logit_bias", key, 0, vocab_size - 1, "token ids of the vocabulary")
        is_ban = isinstance(value, float) and value == -math.inf
        biases[token_id] = value if is_ban else _number(f"logit_bias[{token_id}]", value, -MAX_SHIFT, MAX_SHIFT, _BIAS)
    if len(biases) == vocab_size and max(biases.values()) == -math.inf:
        raise RequestError(
            "logit_bias bans every token of the vocabulary, expected at least one to be left", code="request_logit_bias"
        )
    return tuple(biases.items())


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refused("skip_special_tokens", value, "True or False")
    return value


def _stops(stop: Any) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, Sequence) or isinstance(stop, bytes):
        raise _refused("stop", stop, "a text or a sequence of texts")
    if len(stop) > MAX_STOPS:
        raise RequestError(f"stop has {len(stop)} texts, expected at most {MAX_STOPS}", code="request_stop")
    for index, text in enumerate(stop):
        name = f"stop[{index}]"
        if not isinstance(text, str) or not text:
            raise _refused(name, text, "a text that is not empty")
        if len(text) > MAX_STOP_LENGTH:
            raise RequestError(
                f"{name} has {len(text)} characters, expected at most {MAX_STOP_LENGTH}", code="request_stop"
            )
        check_encodable(name, text)
    return tuple(stop)


def check_encodable(name: str, text: str) -> None:
    """`RequestError` for a text with half of a surrogate pair in it: no sequence of bytes spells it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} has a lone surrogate {text[error.start]!a} at character {error.start}, expected text that UTF-8 "
            "can hold; decode its source as UTF-8",
            code="request_encoding",
        ) from None


def _refused(name: str, value: Any, expected: str) -> RequestError:
    shown = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge integer"
    if len(shown) > 60:
        shown = f"{shown[:57]}..."
    return RequestError(f"{name} is {shown}, expected {expected}", code=f"request_{name.partition('[')[0]}")
