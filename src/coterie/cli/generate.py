"""`coterie generate`: a prompt in, its continuation on standard output, a line of statistics on standard error."""

import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from coterie.cli.console import print_json, say, stderr, visible, warnings_on, write_text
from coterie.cli.failures import Exit, guarded
from coterie.cli.interrupts import Interrupts
from coterie.cli.options import (
    AsJson,
    Debug,
    Device,
    FrequencyPenalty,
    LogitBias,
    MinP,
    ModelName,
    PresencePenalty,
    RepetitionPenalty,
    Stop,
    Temperature,
    TopK,
    TopP,
    parsed_biases,
)
from coterie.cli.prompts import read_prompts
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.runtime.generation import Generation
    from coterie.runtime.memory import MemoryUse
    from coterie.runtime.model import Model

_ECHOED = 2_000
"""Characters of the prompt that are repeated on a terminal; of a longer one the end, where the text goes on."""


def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - reads standard input.", show_default=False)
    ] = None,
    model: ModelName = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 256,
    temperature: Temperature = 0.9,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = None,
    logprobs: Annotated[
        int | None,
        typer.Option(help="With --json: log-probabilities, of so many likeliest tokens too.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    stop: Stop = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Continue each line of this file, side by side; a .jsonl file has a prompt and its options a line.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="With --prompts: so many texts side by side.")] = 8,
    prompt_cache: Annotated[
        Path | None,
        typer.Option(help="Do not read again what this file has of the prompt; it is written.", show_default=False),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue a text, or several, with a mixture-of-experts model.

    The text streams to standard output, everything else goes to standard error. With --json one object comes at the
    end: text, token ids, finish reason, timings. Ctrl-C keeps what was made so far.
    """
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("expected a prompt, or --prompts with a file of them", param_hint="PROMPT")
    if logprobs is not None and not as_json:
        raise typer.BadParameter("log-probabilities are printed with --json", param_hint="--logprobs")
    with guarded(as_json=as_json, debug=debug) as interrupts:
        options = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": parsed_biases(logit_bias or ()),
            "logprobs": logprobs,
            "seed": seed,
            "stop": tuple(stop or ()),
        }
        if prompts is not None:
            from coterie.cli.generate_many import generate_many

            asked = read_prompts(prompts)
            loaded = load(model, device)
            generate_many(loaded, asked, options, batch_size, prompt_cache, interrupts, as_json=as_json)
        else:
            text = read_prompt(str(prompt))
            _generate_one(load(model, device), text, options, prompt_cache, interrupts, as_json=as_json)


def _generate_one(
    model: "Model",
    prompt: str,
    options: dict[str, Any],
    prompt_cache: Path | None,
    interrupts: Interrupts,
    *,
    as_json: bool,
) -> None:
    if prompt_cache is None:
        stream = model.stream(prompt, **options)
        interrupted = drain(stream, interrupts, prompt=prompt, as_json=as_json)
    else:
        cache = model.prompt_cache(prompt_cache if prompt_cache.exists() else None)
        stream = model.stream(prompt, cache=cache, **options)
        interrupted = drain(stream, interrupts, prompt=prompt, as_json=as_json)
        stream.close()
        say(f"prompt cache: {cache.note}", style="dim")
        cache.save(prompt_cache)
    finish(stream.generation, model.memory(), interrupted=interrupted, as_json=as_json)


def read_prompt(argument: str) -> str:
    """The prompt itself, or for `-` all of standard input, which must be UTF-8."""
    if argument != "-":
        return argument
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"standard input is not UTF-8: byte {error.start} of {len(data)} is 0x{data[error.start]:02x}; "
            "convert it first",
            code="prompt_encoding",
        ) from None


def load(model: str | None, device: str) -> "Model":
    """The model, with a spinner on standard error while it loads."""
    import coterie
    from coterie.runtime.memory import size

    # A download draws its own progress, which a spinner would tear.
    is_local = model is None or os.path.exists(model)
    console, text = stderr(), f"Loading {visible(model or 'the bundled model')}"
    spinner = console.status(text) if is_local else None

    def progress(done: int, total: int) -> None:
        if spinner is not None:
            spinner.update(f"{text}: {size(done)} of {size(total)} are on the GPU")

    with spinner or nullcontext(), warnings_on(console):
        return coterie.load(model, device=device, progress=progress)


def drain(stream: Iterable[str], interrupts: Interrupts, *, prompt: str, as_json: bool, line: bool = False) -> bool:
    """Read the stream to its end, writing its pieces unless they go into JSON. True if Ctrl-C ended it.

    line: the text ends its line, also where it does not go to a terminal.
    """
    console, on_terminal = stderr(), sys.stdout.isatty()
    pieces, interrupted = iter(stream), True
    with suppress(KeyboardInterrupt):
        with console.status("Reading the prompt"):
            first = next(pieces, "")
            interrupts.check()
        if as_json:
            for _ in pieces:
                interrupts.check()
            return False
        echo(prompt)
        write_text(first)
        for piece in pieces:
            write_text(piece)
            interrupts.check()
        interrupted = False
    if not as_json and (line or on_terminal):
        write_text("\n")
    return interrupted


def echo(prompt: str) -> None:
    """The prompt in front of its text, where both go to a terminal."""
    console = stderr()
    if sys.stdout.isatty() and console.is_terminal:
        console.print(Text(visible(prompt[-_ECHOED:], keep="\n\t"), style="dim"), end="", soft_wrap=True)


def finish(generation: "Generation", memory: "MemoryUse", *, interrupted: bool, as_json: bool) -> None:
    """Print the statistics, or the JSON object; an interrupted generation keeps its text and exits with 130."""
    reason = "interrupted" if interrupted else generation.finish_reason
    if as_json:
        print_json({**asdict(generation), "finish_reason": reason, "memory": asdict(memory)})
    else:
        say(
            f"{statistics(generation, str(reason))} · {memory_statistics(memory, generation.cache_nbytes)}", style="dim"
        )
    if interrupted:
        raise typer.Exit(Exit.INTERRUPTED)


def statistics(generation: "Generation", reason: str) -> str:
    """One line: tokens and speed of the prompt and of the text, the time to the first token, why it ended."""
    if not generation.token_ids:
        return f"{generation.n_prompt_tokens} prompt tokens · {reason}"
    cached = f", {generation.n_cached_tokens} of them known" if generation.n_cached_tokens else ""
    return " · ".join(
        (
            f"{generation.n_prompt_tokens} prompt tokens{cached}{speed(generation.prompt_tokens_per_second)}",
            f"first token after {generation.timings['first_token']:.2f} s",
            f"{len(generation.token_ids)} tokens{speed(generation.tokens_per_second)}",
            reason,
        )
    )


def memory_statistics(memory: "MemoryUse", cache_nbytes: int) -> str:
    """ "peak 1.2 GiB, 0.9 GiB of it mapped weights, cache 3.1 MiB", and what is taken on a GPU."""
    from coterie.runtime.memory import size

    weights = "" if memory.weights_resident is None else f", {size(memory.weights_resident)} of it mapped weights"
    gpu = "" if memory.gpu is None else f", {size(memory.gpu)} on the GPU"
    return f"peak {size(memory.peak)}{weights}, cache {size(cache_nbytes)}{gpu}"


def speed(tokens_per_second: float) -> str:
    """ " (N/s)", or nothing where too little happened to say."""
    return f" ({tokens_per_second:,.0f}/s)" if tokens_per_second else ""
