"""Stop strings across any cut of the text."""

import itertools
import random

import pytest

from coterie.runtime.stopping import StopWatch


def fed(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None]:
    """What came out, and which string was found."""
    watch = StopWatch(stops)
    out = "".join(watch.feed(piece) for piece in pieces)
    return out + watch.finish(), watch.found


def expected(stops: tuple[str, ...], text: str) -> tuple[str, str | None]:
    """The first string to be complete ends the text; of two that end together, the longer one."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            found = max(complete, key=len)
            return text[: end - len(found)], found
    return text, None


def cuts(text: str) -> list[list[str]]:
    """Every way to cut `text` in pieces."""
    ways = []
    for borders in itertools.product((False, True), repeat=max(0, len(text) - 1)):
        pieces, start = [], 0
        for i, border in enumerate(borders, 1):
            if border:
                pieces.append(text[start:i])
                start = i
        ways.append([*pieces, text[start:]])
    return ways


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (("stop",), "now stop it"),
        (("aab",), "aaaab tail"),
        (("abab", "ba"), "aababa"),
        (("abcd", "bc"), "abcd"),
        (("bc", "abc"), "xabcx"),
        (("ab",), "aXbab"),
        (("whole",), "whole"),
        (("\n\n",), "a\n\nb"),
        (("é数", "数"), "aé数b"),
        (("x",), "none here"),
        ((), "anything"),
        (("aaa",), "aaXaaXaa"),
    ],
)
def test_the_result_does_not_depend_on_the_cut(stops: tuple[str, ...], text: str) -> None:
    for pieces in cuts(text):
        assert fed(stops, pieces) == expected(stops, text)


def test_nothing_of_a_stop_string_comes_out_and_the_rest_comes_at_once() -> None:
    watch = StopWatch(("STOP",))
    assert watch.feed("abc") == "abc"
    assert watch.feed("S") == ""
    assert watch.feed("T") == ""
    assert watch.feed("x") == "STx"
    assert watch.feed("yST") == "y"
    assert watch.feed("OP and more") == ""
    assert watch.found == "STOP"
    assert watch.feed("more") == ""
    assert watch.finish() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    watch = StopWatch(("STOP",))
    assert watch.feed("a STO") == "a "
    assert watch.finish() == "STO"


def test_random_texts_and_cuts() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        stops = tuple({"".join(chance.choices("ab", k=chance.randint(1, 4))) for _ in range(chance.randint(1, 3))})
        text = "".join(chance.choices("abc", k=chance.randint(0, 20)))
        pieces, rest = [], text
        while rest:
            n = chance.randint(1, 4)
            pieces.append(rest[:n])
            rest = rest[n:]
        assert fed(stops, pieces) == expected(stops, text), (stops, pieces)


def test_the_time_is_linear_in_the_text() -> None:
    watch = StopWatch(("a" * 4000 + "b",))
    out = sum(len(watch.feed("a")) for _ in range(100_000))
    assert out == 96_000
    assert len(watch.finish()) == 4000
