"""Stand-ins for models, so that the command line is tested without weights and can be made to fail at any place."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from coterie.runtime.generation import Generation
from coterie.runtime.memory import MemoryUse


class FakeStream:
    """Hands out pieces, one token each; `failure` is raised after them."""

    def __init__(self, pieces: Iterable[str], failure: BaseException | None = None) -> None:
        self.generation = Generation(
            text="",
            token_ids=(),
            finish_reason=None,
            n_prompt_tokens=3,
            timings={"load": 0.1, "prefill": 0.5, "first_token": 0.6, "decode": 2.0},
        )
        self._pieces, self._failure = pieces, failure

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            so_far = self.generation
            token_ids = (*so_far.token_ids, len(so_far.token_ids))
            self.generation = replace(so_far, text=so_far.text + piece, token_ids=token_ids)
            yield piece
        if self._failure is not None:
            raise self._failure
        self.generation = replace(self.generation, finish_reason="length")


class FakeModel:
    """Records what it was asked for and streams fixed pieces."""

    def __init__(self, *pieces: str, failure: BaseException | None = None) -> None:
        self.pieces, self.failure = pieces, failure
        self.asked: dict[str, Any] = {}
        self.loaded: tuple[str | None, str] | None = None

    def load(self, path: str | None = None, *, device: str = "auto", progress: Any = None) -> "FakeModel":
        """Stands in for `coterie.load`."""
        self.loaded = (path, device)
        progress(1 << 29, 1 << 30)
        return self

    def memory(self) -> MemoryUse:
        """Stands in for `Model.memory`."""
        return MemoryUse(peak=3 << 30, resident=2 << 30, weights=1 << 30, weights_resident=1 << 29)

    def stream(self, prompt: str, **options: Any) -> FakeStream:
        """Stands in for `Model.stream`."""
        self.asked = {"prompt": prompt, **options}
        return FakeStream(self.pieces, self.failure)


class FakeChatModel(FakeModel):
    """Replies to a conversation with fixed pieces. A token is a character; with a template, each message is framed."""

    context_length = 400
    marks: tuple[str, ...] = ()

    def __init__(self, *pieces: str, template: bool = True, failure: BaseException | None = None) -> None:
        super().__init__(*pieces, failure=failure)
        self.chat_template = object() if template else None
        self.tokenizer = self
        self.prompts: list[str] = []

    def describe(self) -> "FakeChatModel":
        """Stands in for `Model.describe`."""
        return self

    def prompt_cache(self) -> None:
        """Stands in for `Model.prompt_cache`."""

    def encode(self, text: str) -> list[int]:
        """Stands in for `Tokenizer.encode`."""
        return [ord(character) for character in text]

    def id_of(self, token: str) -> int | None:
        """Stands in for `Tokenizer.id_of`."""
        return self.marks.index(token) if token in self.marks else None

    def apply_chat_template(self, messages: list[dict[str, Any]]) -> list[int]:
        """Stands in for `Model.apply_chat_template`."""
        return self.encode("".join(f"<{m['role'][0]}>{m['content']}" for m in messages) + "<a>")

    def stream(self, prompt: Any, **options: Any) -> FakeStream:
        """Stands in for `Model.stream`."""
        self.prompts.append("".join(map(chr, prompt)))
        return super().stream(self.prompts[-1], **options)
