"""Stop strings against tokens: whatever way a text is cut into tokens, it ends where the plain text says."""

import random

import numpy as np
import pytest

from coterie.runtime.generation import Continuation
from coterie.runtime.request import Request
from coterie.runtime.tokenizer import Tokenizer
from runtime import tokenizers_made as made

TEXTS = [
    "def read_lines(path):\n    return open(path).read()\n\n\ndef f(): pass",
    "déjà vu; 数学は楽しい! 👩‍🚀👨‍👩‍👧 ﷽ a\u0301\u0302",
    "aaaaaaabaaaaaaab" * 3,
    "</s><|im_end|><eos></s",
    "\x00\x1b[2J\r\n\t\u2028\ufeff end",
]
STOPS = [
    ("\n\n",),
    ("数学",),
    ("\u0302",),
    ("🚀",),
    ("aab", "aaaaaaabaaaaaaab"),
    ("<eos>",),
    ("end", "x" * 100, "\x1b[2J"),
    ("of the path): never", "return open(path).read()\n\n\ndef f(): pas"),
    ("d", "de"),
    ("👨‍👩‍👧 ﷽",),
]


@pytest.fixture(scope="module", params=["byte level", "byte fallback"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    definition = made.byte_level() if request.param == "byte level" else made.byte_fallback()
    return Tokenizer(made.dumped(definition), vocab_size=512, eos_ids=[1])


def spelled(tokenizer: Tokenizer, text: str, chance: random.Random) -> list[int]:
    """Tokens that spell `text`, often cut inside of characters, and rarely the way that the tokenizer would cut it."""
    vocabulary: dict[bytes, list[int]] = {}
    for token_id in range(3, 512):
        if tokenizer._inner.id_to_token(token_id) is not None:
            vocabulary.setdefault(tokenizer._bytes_of(token_id), []).append(token_id)
    data, ids = text.encode(), []
    while data:
        lengths = [n for n in range(1, min(len(data), 16) + 1) if data[:n] in vocabulary]
        n = chance.choice(lengths)
        ids.append(chance.choice(vocabulary[data[:n]]))
        data = data[n:]
    return ids


def written(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...]) -> tuple[list[str], Continuation]:
    """The pieces that come out when a model picks these tokens and then the end token."""
    continuation = Continuation(tokenizer, [5], Request(max_tokens=4000, stop=stop), context_length=5000)
    continuation.begin()
    pieces = []
    for token_id in [*ids, 1]:
        logits = np.zeros(512, np.float32)
        logits[token_id] = 1.0
        pieces.append(continuation.take(logits))
        if continuation.finish_reason is not None:
            break
    return pieces, continuation


def expected(text: str, stop: tuple[str, ...]) -> str:
    """The text before the stop string that is complete first; of two that end together, the longer."""
    for end in range(1, len(text) + 1):
        complete = [one for one in stop if text[:end].endswith(one)]
        if complete:
            return text[: end - len(max(complete, key=len))]
    return text


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: ascii(stop)[:30])
@pytest.mark.parametrize("text", TEXTS, ids=lambda text: ascii(text)[:20])
def test_the_text_ends_where_it_must_however_tokens_cut_it(
    tokenizer: Tokenizer, text: str, stop: tuple[str, ...]
) -> None:
    chance = random.Random(ascii((text, stop)))
    whole = expected(text, stop)
    for _ in range(6):
        ids = spelled(tokenizer, text, chance)
        pieces, continuation = written(tokenizer, ids, stop)
        assert "".join(pieces) == whole == continuation.generation.text
        assert continuation.finish_reason == "stop"
        # Nothing is made after the stop string, and what was made is counted with the tokens of the stop string.
        assert continuation.generation.token_ids == (*ids, 1)[: len(continuation.generation.token_ids)]
        assert (len(continuation.generation.token_ids) == len(ids) + 1) == (whole == text)


def test_bytes_that_are_no_text_do_not_hide_a_stop_string() -> None:
    tokenizer = Tokenizer(made.dumped(made.byte_fallback()), vocab_size=512, eos_ids=[1])
    broken = [3 + 0xE6, 3 + 0x95]  # the beginning of a character that never comes
    stop = [3 + byte for byte in b"ST"]
    pieces, continuation = written(tokenizer, [*broken, *stop, *stop], ("ST",))
    assert "".join(pieces) == "\ufffd"
    assert continuation.finish_reason == "stop"
    assert written(tokenizer, [*broken, *stop], ("\ufffdST",))[1].generation.text == ""


def test_a_special_token_has_no_text_to_stop_at() -> None:
    tokenizer = Tokenizer(made.dumped(made.byte_fallback()), vocab_size=512, eos_ids=[1])
    a, bos = 3 + ord("a"), 2
    _, continuation = written(tokenizer, [a, bos, a], ("<bos>",))
    assert continuation.generation.text == "aa"
    assert written(tokenizer, [a, bos, a, a], ("aa",))[1].generation.text == ""
