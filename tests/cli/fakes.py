"""Stand-ins for models, so that the command line is tested without weights and can be made to fail at any place."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeGeneration:
    """What a generation has made so far."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    n_prompt_tokens: int = 3
    timings: dict[str, float] = field(default_factory=lambda: {"prefill": 0.5, "first_token": 0.6, "decode": 2.0})


class FakeStream:
    """Hands out pieces; `failure` is raised after them."""

    def __init__(self, pieces: tuple[str, ...], failure: BaseException | None) -> None:
        self.generation = FakeGeneration()
        self._pieces, self._failure = pieces, failure

    def __iter__(self) -> Iterator[str]:
        for index, piece in enumerate(self._pieces):
            self.generation.text += piece
            self.generation.token_ids.append(index)
            yield piece
        if self._failure is not None:
            raise self._failure
        self.generation.finish_reason = "length"


class FakeModel:
    """Records what it was asked for and streams fixed pieces."""

    def __init__(self, *pieces: str, failure: BaseException | None = None) -> None:
        self.pieces, self.failure = pieces, failure
        self.asked: dict[str, Any] = {}
        self.loaded: tuple[str | None, str] | None = None

    def load(self, path: str | None = None, *, device: str = "auto") -> "FakeModel":
        """Stands in for `coterie.load`."""
        self.loaded = (path, device)
        return self

    def stream(self, prompt: str, **options: Any) -> FakeStream:
        """Stands in for `Model.stream`."""
        self.asked = {"prompt": prompt, **options}
        return FakeStream(self.pieces, self.failure)
