"""`coterie generate --prompts`: many texts side by side, one JSON object a line, or one text after the other."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coterie.cli.console import print_json_line, say, stderr, write_text
from coterie.cli.failures import Exit
from coterie.cli.generate import echo, memory_statistics
from coterie.cli.interrupts import Interrupts

if TYPE_CHECKING:
    from coterie.runtime.batch import BatchStream
    from coterie.runtime.generation import Generation
    from coterie.runtime.model import Model


def generate_many(
    model: "Model",
    asked: Sequence[dict[str, Any]],
    options: dict[str, Any],
    batch_size: int,
    prompt_cache: Path | None,
    interrupts: Interrupts,
    *,
    as_json: bool,
) -> None:
    """Continue every prompt of `read_prompts`. Texts come in the order of the prompts, JSON objects as texts end."""
    own: list[Any] = [{key: value for key, value in one.items() if key != "prompt"} for one in asked]
    stream = model.stream_batch(
        [one["prompt"] for one in asked],
        each=own,
        max_batch_size=batch_size,
        cache=None if prompt_cache is None else model.prompt_cache(prompt_cache),
        **options,
    )
    interrupted = _drain(stream, [one["prompt"] for one in asked], interrupts, as_json=as_json)
    made = stream.generations
    if interrupted and as_json:
        for index, generation in enumerate(made):
            if generation.finish_reason is None:
                print_json_line(record(index, generation, "interrupted"))
    if not as_json:
        say(f"{statistics(made)} · {memory_statistics(model.memory(), sum(m.cache_nbytes for m in made))}", style="dim")
    if interrupted:
        raise typer.Exit(Exit.INTERRUPTED)


def _drain(stream: "BatchStream", prompts: Sequence[Any], interrupts: Interrupts, *, as_json: bool) -> bool:
    """Read the stream to its end. True if Ctrl-C ended it."""
    n_prompts, ended = len(prompts), 0
    shown: dict[int, str] = {}
    try:
        with stderr().status(f"0 of {n_prompts} texts") as status:
            for piece in stream:
                interrupts.check()
                if piece.finish_reason is None:
                    continue
                ended += 1
                status.update(f"{ended} of {n_prompts} texts")
                generation = stream.generations[piece.index]
                if as_json:
                    print_json_line(record(piece.index, generation, piece.finish_reason))
                else:
                    shown[piece.index] = generation.text
    except KeyboardInterrupt:
        for index, generation in enumerate(stream.generations):
            shown.setdefault(index, generation.text)
        _write(shown, prompts, as_json=as_json)
        return True
    _write(shown, prompts, as_json=as_json)
    return False


def _write(texts: dict[int, str], prompts: Sequence[Any], *, as_json: bool) -> None:
    if not as_json:
        for index in sorted(texts):
            say(f"prompt {index + 1}", style="dim")
            echo(prompts[index] if isinstance(prompts[index], str) else "")
            write_text(texts[index] + "\n")


def record(index: int, generation: "Generation", reason: str) -> dict[str, Any]:
    """The JSON object of one text; `index` counts the prompts from 0."""
    return {"index": index, **asdict(generation), "finish_reason": reason}


def statistics(made: Sequence["Generation"]) -> str:
    """One line: texts and tokens, and how many of them a second."""
    n_tokens = sum(len(generation.token_ids) for generation in made)
    seconds = max(m.timings["first_token"] + m.timings["decode"] for m in made)
    speed = f" ({n_tokens / seconds:,.0f}/s)" if seconds > 0 else ""
    n_read = sum(m.n_prompt_tokens - m.n_cached_tokens for m in made)
    return f"{len(made)} texts · {n_read} prompt tokens read · {n_tokens} tokens{speed}"
