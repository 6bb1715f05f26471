"""Conversations with a real small model: the prompt is the template's, and the context is kept to."""

from typing import Any

import pytest

from coterie.errors import RequestError
from coterie.runtime import ChatTemplate, Model, load
from coterie.runtime.cache import LayerStore
from coterie.runtime.conversation import Conversation, joined
from models import tiny
from runtime.templates_made import TEMPLATES, TOKENS, said


@pytest.fixture(scope="module")
def model() -> Model:
    made = load(tiny.checkpoint("qwen3_moe", "4 bits g64"))
    made.chat_template = ChatTemplate({"default": TEMPLATES["chatml"]}, tokens=TOKENS)
    return made


def reply(conversation: Conversation, text: str, **options: Any) -> str:
    stream = conversation.ask(text, **{"max_tokens": 6, **options})
    made = "".join(piece.text for piece in stream)
    conversation.add(text, made)
    return made


def test_replies_are_those_of_the_model_to_the_messages_so_far(model: Model) -> None:
    conversation = Conversation(model, said(system="s"))
    first, second = reply(conversation, "one"), reply(conversation, "two", temperature=6.0, seed=3)
    assert first == model.chat(said("one", system="s"), max_tokens=6).text
    messages = said("one", first, "two", system="s")
    assert second == model.chat(messages, max_tokens=6, temperature=6.0, seed=3).text
    assert conversation.messages == [*messages, {"role": "assistant", "content": second}]


def test_plain_text_is_continued(model: Model) -> None:
    conversation = Conversation(model, plain=True)
    first = reply(conversation, "def f(")
    expected = model.generate("def f(", max_tokens=6).text
    assert first == expected
    text = joined(said("def f(", first, "x"))
    assert reply(conversation, "x") == model.generate(text, max_tokens=6).text


def test_lines_of_plain_text() -> None:
    assert joined(said("a", "b", "c", system="s")) == "s\nab\nc"
    assert joined(said("a\n", "b\n", "c")) == "a\nb\nc"
    assert joined([]) == ""
    with pytest.raises(RequestError):
        joined([{"role": "user", "content": [{"type": "text", "text": "x"}]}])


def test_the_system_can_be_changed(model: Model) -> None:
    conversation = Conversation(model)
    assert conversation.system is None
    conversation.system = "a"
    reply(conversation, "x")
    conversation.system = "b"
    assert [message["content"] for message in conversation.messages[:2]] == ["b", "x"]
    conversation.system = None
    assert conversation.messages[0]["content"] == "x"


def with_context(length: int, model: Model, monkeypatch: pytest.MonkeyPatch) -> Conversation:
    conversation = Conversation(model, said(system="keep"))
    monkeypatch.setattr(conversation, "_context", length)
    return conversation


def test_what_does_not_fit_is_left_out_from_the_oldest_on(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = with_context(1000, model, monkeypatch)
    left_out = []
    for index in range(30):
        stream = conversation.ask(f"{index:02d} " + "x" * 30, max_tokens=2)
        made = stream.generation
        assert made.n_prompt_tokens + 2 <= 1000
        conversation.add(f"{index:02d} " + "x" * 30, "y" * 5)
        left_out.append(conversation.n_left_out)
    assert left_out[0] == 0
    assert left_out[-1] > 0
    assert left_out == sorted(left_out)
    assert all(n % 2 == 0 for n in left_out)
    # A quarter of the context is made free at a time, so that not every prompt begins differently.
    assert 2 < len(set(left_out)) < 15
    assert len(conversation.messages) == 61
    conversation.replace(conversation.messages[:3])
    assert conversation.n_left_out == 0


def test_a_message_that_alone_does_not_fit_is_refused_and_changes_nothing(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = with_context(100, model, monkeypatch)
    reply(conversation, "x")
    before = list(conversation.messages)
    with pytest.raises(RequestError) as refused:
        conversation.ask("x" * 200, max_tokens=5)
    assert refused.value.code == "request_context"
    assert conversation.messages == before
    assert conversation.n_left_out == 0
    assert reply(conversation, "y") is not None


def test_only_what_is_new_is_read(model: Model) -> None:
    conversation = Conversation(model, said(system="s"))
    reply(conversation, "one " * 20)
    stream = conversation.ask("two", max_tokens=2)
    assert list(stream) is not None
    made = stream.generation
    assert made.n_prompt_tokens - made.n_cached_tokens < 80 < made.n_cached_tokens


@pytest.mark.parametrize("strike", [1, 2, 4, 7, 11])
def test_a_reply_that_was_struck_anywhere_leaves_the_next_one_whole(
    model: Model, strike: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(model)
    first = reply(conversation, "one")
    calls = 0

    def extend(self: LayerStore, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == strike:
            raise KeyboardInterrupt
        return honest(self, *arguments)

    honest = LayerStore.reserve
    with monkeypatch.context() as patch:
        patch.setattr(LayerStore, "reserve", extend)
        stream = conversation.ask("two", max_tokens=6)
        with pytest.raises(KeyboardInterrupt):
            for _ in stream:
                pass
    kept = stream.text
    conversation.add("two", kept)
    third = reply(conversation, "three")
    assert third == model.chat(said("one", first, "two", kept, "three"), max_tokens=6).text


def test_a_reply_that_was_left_in_the_middle_leaves_the_next_one_whole(model: Model) -> None:
    conversation = Conversation(model)
    stream = conversation.ask("one", max_tokens=9)
    kept = next(iter(stream)).text
    conversation.add("one", kept)
    assert reply(conversation, "two") == model.chat(said("one", kept, "two"), max_tokens=6).text
