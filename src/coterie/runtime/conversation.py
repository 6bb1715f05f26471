"""A conversation: what was said, the prompt that it makes, and what is left out once the context is full.

With a chat template the prompt is the template's. Without one (`plain`) it is the messages one after the other, as they
are: what is asked begins on a new line, a reply follows directly. A model that was trained on texts and not on
conversations continues that.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Unpack

from coterie.errors import RequestError
from coterie.runtime.messages import checked_messages
from coterie.runtime.reasoning import Piece, Splitter, begins_thinking, marks_of
from coterie.runtime.request import Options

if TYPE_CHECKING:
    from coterie.runtime.generation import Generation, Stream
    from coterie.runtime.model import Model


class Reply:
    """A reply under way: iterate over it once for its pieces, and look at the rest at any time."""

    def __init__(self, stream: "Stream", splitter: Splitter) -> None:
        """Made by `Conversation.ask`."""
        self.thoughts = ""
        self.text = ""
        self._stream = stream
        self._splitter = splitter

    def __iter__(self) -> Iterator[Piece]:
        for text in self._stream:
            yield from map(self._noted, self._splitter.feed(text))
        yield from map(self._noted, self._splitter.finish())

    @property
    def generation(self) -> "Generation":
        """What has been made so far; its text has the thoughts and their marks."""
        return self._stream.generation

    def _noted(self, piece: Piece) -> Piece:
        if piece.is_thought:
            self.thoughts += piece.text
        else:
            self.text += piece.text
        return piece


class Conversation:
    """Messages, and the replies of one model to them.

    messages: all of them, the system's first if there is one. n_left_out: how many the last prompt left out. When a
    prompt and an eighth of the context (or max_tokens, if that is less) do not fit, the oldest exchanges after the
    system's message are left out until a quarter of the context is free.
    """

    def __init__(self, model: "Model", messages: Iterable[Mapping[str, Any]] = (), *, plain: bool = False) -> None:
        """`plain`: without a chat template. Messages as `Model.apply_chat_template` takes them."""
        self.plain = plain
        self._model = model
        self._context = model.describe().context_length
        self._cache = model.prompt_cache()
        self._marks = marks_of(model.tokenizer)
        self.replace(messages)

    def replace(self, messages: Iterable[Mapping[str, Any]]) -> None:
        """Go on from these messages instead; none begin anew. `RequestError` if they are none."""
        taken = list(messages)
        self.messages: list[dict[str, Any]] = checked_messages(taken) if taken else []
        self._begin = self._first

    @property
    def system(self) -> str | None:
        """The system's message, if there is one."""
        return str(self.messages[0].get("content", "")) if self._first else None

    @system.setter
    def system(self, text: str | None) -> None:
        """Another one, or none."""
        rest = self.messages[self._first :]
        skipped = self._begin - self._first
        self.messages = [*([] if text is None else [{"role": "system", "content": text}]), *rest]
        self._begin = self._first + skipped

    @property
    def n_left_out(self) -> int:
        """Messages that the last prompt left out."""
        return self._begin - self._first

    def ask(self, text: str, **options: Unpack[Options]) -> Reply:
        """The reply to `text`, under way; nothing is added to the messages until `add` is called.

        `RequestError` for a text that alone does not fit in the context, and what `Model.stream` raises.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        reserve = min(int(options.get("max_tokens", self._context)), self._context // 8)
        ids = self._fitting(asked, reserve)
        marks = () if self.plain else self._marks
        if marks:
            # The marks are special tokens in some vocabularies.
            options = {**options, "skip_special_tokens": False}
        stream = self._model.stream(ids, cache=self._cache, **options)
        return Reply(stream, Splitter(marks, thinking=bool(marks) and begins_thinking(self._model.tokenizer, ids)))

    def add(self, text: str, reply: str, thoughts: str = "") -> None:
        """All of it belongs to the conversation from now on; whether the model sees old thoughts is its template's."""
        answer = {"role": "assistant", "content": reply, **({"reasoning_content": thoughts} if thoughts else {})}
        self.messages += [{"role": "user", "content": text}, answer]

    @property
    def _first(self) -> int:
        """The index of the first message that may be left out."""
        return int(bool(self.messages) and self.messages[0]["role"] == "system")

    def _fitting(self, asked: list[dict[str, Any]], reserve: int) -> list[int]:
        begin, ids = self._begin, self._ids(asked, self._begin)
        if len(ids) + reserve > self._context:
            for begin in self._later_exchanges(asked):
                ids = self._ids(asked, begin)
                if len(ids) + self._context // 4 <= self._context:
                    break
        if len(ids) >= self._context:
            raise RequestError(
                f"the message makes a prompt of {len(ids)} tokens even without any before it, expected fewer than the "
                f"{self._context} of the model's context; shorten it",
                code="request_context",
            )
        self._begin = begin
        return ids

    def _later_exchanges(self, asked: list[dict[str, Any]]) -> list[int]:
        """Where the exchanges after the first begin that a prompt could begin with."""
        return [index for index in range(self._begin + 1, len(asked)) if asked[index]["role"] == "user"]

    def _ids(self, asked: list[dict[str, Any]], begin: int) -> list[int]:
        shown = [*asked[: self._first], *asked[begin:]]
        if self.plain:
            return self._model.tokenizer.encode(joined(shown))
        return self._model.apply_chat_template(shown)


def joined(messages: Iterable[Mapping[str, Any]]) -> str:
    """The messages as one text: a reply follows directly, everything else begins on a line of its own."""
    text = ""
    for index, message in enumerate(messages):
        content = message.get("content", "")
        if not isinstance(content, str):
            raise RequestError(
                f"messages[{index}]['content'] is a {type(content).__name__}, expected a text, for the model has no "
                "chat template",
                code="request_messages",
            )
        if message["role"] != "assistant" and text and not text.endswith("\n"):
            text += "\n"
        text += content
    return text
