"""Streams from ids to text: the same text as decoding at once, and never half a character on the way."""

import random
import time

import pytest

from coterie.errors import UnsupportedError
from coterie.runtime.detokenizer import spelling
from coterie.runtime.tokenizer import Tokenizer
from runtime import tokenizers_made as made

TEXT = "def f(x):\n    return '数学' + \"🎉👩‍👩‍👧\" + 'é' * 3  # déjà vu\tthe\x00end\r\n"
BYTE_LEVEL = Tokenizer(made.dumped(made.byte_level()), vocab_size=512, eos_ids=[1])
BYTE_FALLBACK = Tokenizer(made.dumped(made.byte_fallback()), vocab_size=400, eos_ids=[1])
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte level", "byte fallback"])


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.detokenizer()
    return [stream.feed(i) for i in ids]


@BOTH
def test_a_stream_spells_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert "".join(pieces(tokenizer, ids)) == TEXT == tokenizer.decode(ids)


@BOTH
def test_no_piece_has_half_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    parts = pieces(tokenizer, ids)
    assert not any("\ufffd" in part for part in parts)
    # The emoji is four bytes and so several tokens: nothing, nothing, nothing, then all of it.
    assert parts.count("🎉") == 1
    assert "" in parts


@BOTH
def test_every_beginning_of_the_stream_is_a_beginning_of_the_text(tokenizer: Tokenizer) -> None:
    parts, so_far = pieces(tokenizer, tokenizer.encode(TEXT)), ""
    for part in parts:
        so_far += part
        assert TEXT.startswith(so_far)


def test_random_ids_of_a_byte_level_tokenizer_decode_as_the_library_does() -> None:
    chance = random.Random(1)
    for _ in range(300):
        ids = [chance.randrange(BYTE_LEVEL.vocab_size) for _ in range(chance.randint(1, 30))]
        whole = BYTE_LEVEL.decode(ids)
        streamed = "".join(pieces(BYTE_LEVEL, ids))
        # What is still waiting for its rest at the end is left out; the library shows it as one U+FFFD.
        assert whole in (streamed, streamed + "\ufffd")


def test_random_bytes_become_what_python_reads() -> None:
    chance = random.Random(2)
    for _ in range(300):
        raw = bytes(chance.randrange(256) for _ in range(chance.randint(1, 40)))
        ids = [3 + byte for byte in raw]
        streamed = "".join(pieces(BYTE_FALLBACK, ids))
        whole = raw.decode("utf-8", "replace")
        assert whole in (streamed, streamed + "\ufffd")


def test_bytes_that_never_become_text_do_not_stop_the_stream() -> None:
    parts = pieces(BYTE_FALLBACK, [3 + 0xFF, 3 + 0x80, 3 + 0x61, 3 + 0xE6, 3 + 0x62])
    assert parts == ["\ufffd", "\ufffd", "a", "", "\ufffdb"]


@BOTH
def test_special_tokens_and_rows_without_a_token_spell_nothing(tokenizer: Tokenizer) -> None:
    the = tokenizer.encode("the")
    assert "".join(pieces(tokenizer, [2, 0, *the, 1, tokenizer.vocab_size - 1, 2])) == "the"


@BOTH
def test_a_hundred_thousand_tokens_take_linear_time(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)

    def seconds(n: int) -> float:
        stream, started = tokenizer.detokenizer(), time.process_time()
        for i in range(n):
            stream.feed(ids[i % len(ids)])
        return time.process_time() - started

    seconds(1000)
    # Quadratic time would be a hundred times as much.
    assert seconds(100_000) < 30 * max(seconds(10_000), 1e-3)


def test_spellings() -> None:
    level = spelling({"type": "ByteLevel"})
    assert level.bytes_of("Ġthe") == b" the"
    assert level.bytes_of("ÃĤ") == b"\xc3\x82"
    assert level.bytes_of("<|tool call|>") == b"<|tool call|>"
    fallback = spelling(made.byte_fallback()["decoder"])
    assert fallback.bytes_of("<0x0A>") == b"\n"
    assert fallback.bytes_of("\u2581the") == b" the"
    assert fallback.bytes_of("<0x0A") == b"<0x0A"
    assert spelling({"type": "Metaspace", "replacement": "_"}).bytes_of("_a") == b" a"


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        {},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}]},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "CTC"}]},
        {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}],
        },
        {"type": "Sequence", "decoders": "ByteLevel"},
    ],
)
def test_other_decoders_are_refused_by_name(decoder: object) -> None:
    with pytest.raises(UnsupportedError) as refused:
        spelling(decoder)  # type: ignore[arg-type]
    assert refused.value.code == "unsupported_tokenizer"
