"""`coterie generate`: a prompt in, its continuation on standard output, a line of statistics on standard error."""

import os
import sys
from contextlib import nullcontext, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from coterie.cli.console import print_json, say, stderr, visible, write_text
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
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.runtime.generation import Generation, Stream
    from coterie.runtime.model import Model

_ECHOED = 2_000
"""Characters of the prompt that are repeated on a terminal; of a longer one the end, where the text goes on."""


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.", show_default=False)],
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
    device: Device = "auto",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue a text with a mixture-of-experts model.

    The text streams to standard output, everything else goes to standard error. With --json one object comes at the
    end: text, token ids, finish reason, timings. Ctrl-C keeps what was made so far.
    """
    if logprobs is not None and not as_json:
        raise typer.BadParameter("log-probabilities are printed with --json", param_hint="--logprobs")
    with guarded(as_json=as_json, debug=debug) as interrupts:
        text = read_prompt(prompt)
        stream = load(model, device).stream(
            text,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            logit_bias=parsed_biases(logit_bias or ()),
            logprobs=logprobs,
            seed=seed,
            stop=tuple(stop or ()),
        )
        interrupted = drain(stream, interrupts, prompt=text, as_json=as_json)
        finish(stream.generation, interrupted=interrupted, as_json=as_json)


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

    # A download draws its own progress, which a spinner would tear.
    is_local = model is None or os.path.exists(model)
    with stderr().status(f"Loading {visible(model or 'the bundled model')}") if is_local else nullcontext():
        return coterie.load(model, device=device)


def drain(stream: "Stream", interrupts: Interrupts, *, prompt: str, as_json: bool, line: bool = False) -> bool:
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
        if on_terminal and console.is_terminal:
            console.print(Text(visible(prompt[-_ECHOED:], keep="\n\t"), style="dim"), end="", soft_wrap=True)
        write_text(first)
        for piece in pieces:
            write_text(piece)
            interrupts.check()
        interrupted = False
    if not as_json and (line or on_terminal):
        write_text("\n")
    return interrupted


def finish(generation: "Generation", *, interrupted: bool, as_json: bool) -> None:
    """Print the statistics, or the JSON object; an interrupted generation keeps its text and exits with 130."""
    reason = "interrupted" if interrupted else generation.finish_reason
    if as_json:
        print_json({**asdict(generation), "finish_reason": reason})
    else:
        say(statistics(generation, str(reason)), style="dim")
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


def speed(tokens_per_second: float) -> str:
    """ " (N/s)", or nothing where too little happened to say."""
    return f" ({tokens_per_second:,.0f}/s)" if tokens_per_second else ""
