"""Thoughts and answers are told apart, wherever the text is cut, and only by marks that the vocabulary has."""

import itertools

import pytest

from coterie.runtime import ChatTemplate, load
from coterie.runtime.conversation import Conversation
from coterie.runtime.reasoning import Splitter, begins_thinking, marks_of
from coterie.runtime.tokenizer import Tokenizer
from models import tiny
from runtime import tokenizers_made as made
from runtime.templates_made import TEMPLATES, TOKENS, said

THINK = ("<think>", "</think>")
GEMMA = ("<|channel>", "<channel|>")
GPT_OSS = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>")

CASES = [
    (THINK, "<think>\nhm, a < b\n</think>\n\nyes\n\nno", "hm, a < b\n", "yes\n\nno"),
    (THINK, "just an answer", "", "just an answer"),
    (THINK, "<think>never ends", "never ends", ""),
    (THINK, "<think>\n\n</think>\n\nno thought", "", "no thought"),
    (THINK, "a <thin> </thinker> <|channel|>analysis", "", "a <thin> </thinker> <|channel|>analysis"),
    (THINK, "ends with <thi", "", "ends with <thi"),
    (GEMMA, "<|channel>thought\nlet me\nsee<channel|>yes\nno", "let me\nsee", "yes\nno"),
    (GEMMA, "<|channel>thought\n<channel|>yes", "", "yes"),
    (GEMMA, "yes", "", "yes"),
    (
        GPT_OSS,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes",
        "hm",
        "yes",
    ),
    (GPT_OSS, "<|channel|>final<|message|>\nyes\nno", "", "yes\nno"),
    (GPT_OSS, "<|channel|>analysis<|message|>hm", "hm", ""),
    (
        GPT_OSS,
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=x<|message|>b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>c",
        "ab",
        "c",
    ),
    ((), "<think>x</think>y<|channel>", "", "<think>x</think>y<|channel>"),
]


def split(splitter: Splitter, pieces: list[str]) -> tuple[str, str]:
    """(thoughts, answer)."""
    found = [*itertools.chain.from_iterable(map(splitter.feed, pieces)), *splitter.finish()]
    assert all(piece.text for piece in found)
    return "".join(p.text for p in found if p.is_thought), "".join(p.text for p in found if not p.is_thought)


@pytest.mark.parametrize(("marks", "text", "thoughts", "answer"), CASES)
def test_wherever_the_text_is_cut(marks: tuple[str, ...], text: str, thoughts: str, answer: str) -> None:
    for size in range(1, len(text) + 1):
        for shift in range(min(size, 7)):
            pieces = [text[:shift], *(text[i : i + size] for i in range(shift, len(text), size))]
            assert split(Splitter(marks), pieces) == (thoughts, answer)


def test_a_reply_may_begin_inside_of_a_thought() -> None:
    assert split(Splitter(THINK, thinking=True), ["\nhm</th", "ink>", "\n\nyes"]) == ("hm", "yes")


def test_what_is_certain_comes_at_once() -> None:
    splitter = Splitter(THINK)
    assert [piece.text for piece in splitter.feed("yes, <")] == ["yes, "]
    assert [piece.text for piece in splitter.feed("b")] == ["<b"]
    assert list(splitter.finish()) == []


def with_tokens(*contents: str, special: bool) -> Tokenizer:
    """The byte-level tokenizer with tokens added."""
    definition = made.byte_level()
    first = max(definition["model"]["vocab"].values()) + 1
    for index, content in enumerate(contents):
        token = {**definition["added_tokens"][0], "id": first + index, "content": content, "special": special}
        definition["added_tokens"].append(token)
    return Tokenizer(made.dumped(definition), vocab_size=600, eos_ids=[1])


@pytest.mark.parametrize("special", [False, True])
def test_marks_count_only_if_the_vocabulary_has_them(special: bool) -> None:
    assert marks_of(with_tokens(special=special)) == ()
    assert marks_of(with_tokens("<think>", special=special)) == ()
    assert marks_of(with_tokens(*THINK, special=special)) == THINK
    assert marks_of(with_tokens(*GEMMA, *GPT_OSS, special=special)) == (*GEMMA, *GPT_OSS)


def test_a_prompt_that_opens_a_thought() -> None:
    tokenizer = with_tokens(*THINK, special=False)
    for text, expected in (
        ("a<think>\n", True),
        ("<think>\n\n</think>\n\n", False),
        ("<think>" + "x" * 40, False),
        ("", False),
    ):
        assert begins_thinking(tokenizer, tokenizer.encode(text, special_tokens=True)) is expected
    assert begins_thinking(with_tokens(special=False), [1, 2]) is False


def test_special_tokens_are_spelled_when_asked_for() -> None:
    tokenizer = with_tokens(*GEMMA, special=True)
    ids = tokenizer.encode("é<|channel>thought<channel|>x", special_tokens=True)
    for skip, expected in ((True, "éthoughtx"), (False, "é<|channel>thought<channel|>x")):
        feed = tokenizer.detokenizer(skip_special_tokens=skip).feed
        assert "".join(map(feed, ids)) == expected


def test_a_conversation_keeps_thoughts_and_answer_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tiny.checkpoint("qwen3_moe", "4 bits g64"))
    model.chat_template = ChatTemplate({"default": TEMPLATES["chatml"]}, tokens=TOKENS)
    expected = model.generate(model.apply_chat_template(said("x")), max_tokens=4, skip_special_tokens=False).text
    monkeypatch.setattr("coterie.runtime.conversation.marks_of", lambda _: THINK)
    conversation = Conversation(model)
    monkeypatch.setattr("coterie.runtime.conversation.begins_thinking", lambda *_: True)
    reply = conversation.ask("x", max_tokens=4)
    assert all(piece.is_thought for piece in reply)
    assert (reply.thoughts, reply.text) == (expected.lstrip("\n"), "")
    conversation.add("x", "answer", reply.thoughts)
    assert conversation.messages[-1] == {
        "role": "assistant",
        "content": "answer",
        "reasoning_content": expected.lstrip("\n"),
    }
    conversation.add("y", "z")
    assert "reasoning_content" not in conversation.messages[-1]
