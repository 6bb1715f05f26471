"""What a model thinks before it answers, told apart from the answer by the marks that its family writes.

    <think> thought </think> answer                                             Qwen3, DeepSeek, GLM
    <|channel>thought (a line's end) thought <channel|> answer                  Gemma 4
    <|channel|>analysis<|message|> thought <|end|><|start|>assistant<|channel|>final<|message|> answer    gpt-oss

A mark counts only for a model whose vocabulary has it as a token.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from coterie.runtime.tokenizer import Tokenizer

State = Literal["answer", "thought", "header"]

_AFTER: dict[str, State] = {
    "<think>": "thought",
    "</think>": "answer",
    "<|channel>": "header",
    "<channel|>": "answer",
    "<|channel|>": "header",
    "<|end|>": "header",
    "<|start|>": "header",
}
"""What follows a mark. A header names a channel, and is no part of the text."""

_BODY = "<|message|>"
_ANSWERS = "final"
"""The channel whose text is the answer; all others are thoughts."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a reply, of its thoughts or of its answer."""

    text: str
    is_thought: bool = False


def marks_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The marks that the vocabulary has; none if it has no pair that could enclose a thought."""
    pairs = (("<think>", "</think>"), ("<|channel>", "<channel|>"), ("<|channel|>", _BODY, "<|end|>", "<|start|>"))
    known = [pair for pair in pairs if all(tokenizer.id_of(mark) is not None for mark in pair)]
    return tuple(mark for pair in known for mark in pair)


def begins_thinking(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> bool:
    """Does the prompt itself open a thought, as the templates of some models do?"""
    begin, end = tokenizer.id_of("<think>"), tokenizer.id_of("</think>")
    last = [token_id for token_id in prompt_ids[-8:] if token_id in (begin, end)]
    return begin is not None and last[-1:] == [begin]


class Splitter:
    """One reply, in pieces of text as they come, cut at its marks."""

    def __init__(self, marks: Sequence[str], *, thinking: bool = False) -> None:
        """`thinking`: the reply begins inside a thought."""
        self._marks = tuple(marks)
        self._state: State = "thought" if thinking else "answer"
        self._held = self._header = ""
        self._at_start = bool(marks)

    def feed(self, text: str) -> Iterator[Piece]:
        """Take `text`; the pieces that are certain now."""
        self._held += text
        while (found := self._next_mark()) is not None:
            yield from self._release(found.start())
            self._held = self._held[len(found[0]) :]
            self._enter(found[0])
        yield from self._release(len(self._held) - self._uncertain())

    def finish(self) -> Iterator[Piece]:
        """The reply is over."""
        yield from self._release(len(self._held))

    def _active(self) -> tuple[str, ...]:
        # Gemma's header ends with its line; elsewhere a line's end is only text.
        return (*self._marks, "\n") if self._state == "header" and "<|channel>" in self._marks else self._marks

    def _next_mark(self) -> re.Match[str] | None:
        return re.search("|".join(map(re.escape, self._active())), self._held) if self._marks else None

    def _uncertain(self) -> int:
        """Characters at the end that may be the beginning of a mark."""
        longest = min(len(self._held), max(map(len, self._marks), default=1) - 1)
        ends = (self._held[-n:] for n in range(longest, 0, -1))
        return next((len(end) for end in ends if any(mark.startswith(end) for mark in self._marks)), 0)

    def _enter(self, mark: str) -> None:
        if mark in (_BODY, "\n"):
            self._state = "answer" if self._header.strip().startswith(_ANSWERS) else "thought"
        else:
            self._state = _AFTER[mark]
        self._header, self._at_start = "", True

    def _release(self, n: int) -> Iterator[Piece]:
        text, self._held = self._held[:n], self._held[n:]
        if self._state == "header":
            self._header += text
            return
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        if text:
            yield Piece(text, self._state == "thought")
