"""`coterie chat`: messages in, replies on standard output, everything else on standard error."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.console import aside, print_json_line, say, visible
from coterie.cli.entries import Entries, Entry
from coterie.cli.failures import Exit, guarded, report
from coterie.cli.generate import drain, load, statistics
from coterie.cli.interrupts import Interrupts
from coterie.cli.options import (
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
from coterie.errors import CoterieError, RequestError

if TYPE_CHECKING:
    from coterie.runtime.conversation import Conversation, Reply
    from coterie.runtime.model import Model

PLAIN_MAX_TOKENS = 128
"""A model that only continues texts does not know where a reply ends."""

NO_TEMPLATE = (
    "This model has no chat template: it was trained to continue texts, not to answer. What you write is appended to "
    "the text so far, on a line of its own, and continued."
)
HELP = '''/help            this
/system TEXT     set what the system says; without a text it says nothing
/save FILE       write the conversation to a file
/load FILE       go on with the one in a file
/reset           begin anew, with the same system message
/quit            end; so does Ctrl-D

""" on a line of its own begins a message of several lines and ends it. A message that begins with / is written //.
Ctrl-C stops a reply and keeps what came. When the context is full, the oldest exchanges are left out.'''


def chat(
    model: ModelName = None,
    system: Annotated[str | None, typer.Option(help="What the system says first.", show_default=False)] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="Go on with the conversation in this file, and keep it there.", show_default=False),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Without a chat template: texts are continued.")] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help=f"Tokens of a reply; by default what the context holds, and {PLAIN_MAX_TOKENS} without a template.",
            show_default=False,
        ),
    ] = None,
    temperature: Temperature = 0.9,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    presence_penalty: PresencePenalty = 0.0,
    frequency_penalty: FrequencyPenalty = 0.0,
    logit_bias: LogitBias = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same replies.")] = 0,
    stop: Stop = None,
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each reply.")] = False,
    debug: Debug = False,
) -> None:
    """Talk with a model. Each line is a message; /help has the commands.

    Replies stream to standard output, everything else goes to standard error. Without a terminal, each line of standard
    input is a message or a command, and the first error ends it.
    """
    with guarded(as_json=as_json, debug=debug):
        options = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "logit_bias": parsed_biases(logit_bias or ()),
            "seed": seed,
            "stop": tuple(stop or ()),
        }
        messages = open_history(history)
        loaded = load(model, device)
        conversation = begin(loaded, messages, system=system, plain=plain)
        if max_tokens is None:
            max_tokens = PLAIN_MAX_TOKENS if conversation.plain else loaded.describe().context_length
        session = Session(conversation, {"max_tokens": max_tokens, **options}, history=history, as_json=as_json)
        session.run()


def open_history(path: Path | None) -> list[dict[str, Any]]:
    """The messages in the file; a new file is made, so that one that cannot be written is known before a reply is."""
    from coterie.runtime.history import load_history, save_history

    if path is None:
        return []
    if not os.path.lexists(path):
        save_history(path, [])
    return load_history(path)


def begin(model: "Model", messages: list[dict[str, Any]], *, system: str | None, plain: bool) -> "Conversation":
    """A conversation with `model`; one without a chat template is plain, and that is said."""
    from coterie.runtime.conversation import Conversation

    if model.chat_template is None and not plain:
        say(NO_TEMPLATE, style="dim")
    conversation = Conversation(model, messages, plain=plain or model.chat_template is None)
    if system is not None:
        conversation.system = system
    return conversation


class Session:
    """A conversation at a terminal, or through a pipe. At a terminal an error ends a reply, in a pipe everything."""

    def __init__(
        self, conversation: "Conversation", options: dict[str, Any], *, history: Path | None, as_json: bool
    ) -> None:
        self._conversation = conversation
        self._options = options
        self._history = history
        self._as_json = as_json
        self._entries = Entries()
        self._n_left_out = 0

    def run(self) -> None:
        """Until the entries end, or /quit."""
        if self._entries.is_interactive:
            said = sum(message["role"] != "system" for message in self._conversation.messages)
            say(f"{f'{said} messages so far. ' if said else ''}/help for the commands, Ctrl-D ends.", style="dim")
        goes_on = True
        while goes_on:
            try:
                with Interrupts() as interrupts:
                    entry = self._entries.read()
                    goes_on = entry is not None and self._handle(entry, interrupts)
            except KeyboardInterrupt:
                if not self._entries.is_interactive:
                    raise
                say("\nCtrl-D or /quit ends.", style="dim")
            except CoterieError as error:
                if not self._entries.is_interactive:
                    raise
                report(error, as_json=False)

    def _handle(self, entry: Entry, interrupts: Interrupts) -> bool:
        """Do what the entry says; False if it ends the conversation."""
        if entry.is_command:
            return self._obey(entry.text)
        if entry.text.strip():
            self._answer(entry.text, interrupts)
        return True

    def _answer(self, text: str, interrupts: Interrupts) -> None:
        reply = self._conversation.ask(text, **self._options)
        if self._conversation.n_left_out != self._n_left_out:
            self._n_left_out = self._conversation.n_left_out
            say(f"the context is full: the model no longer sees the oldest {self._n_left_out} messages", style="dim")
        pieces = (piece.text for piece in reply) if self._as_json else answer_of(reply)
        interrupted = drain(pieces, interrupts, prompt="", as_json=self._as_json, line=True)
        generation = reply.generation
        reason = "interrupted" if interrupted else generation.finish_reason
        if self._as_json:
            whole = {**asdict(generation), "text": reply.text, "thoughts": reply.thoughts, "finish_reason": reason}
            print_json_line(whole)
        else:
            say(statistics(generation, str(reason)), style="dim")
        if reply.text or reply.thoughts or not interrupted:
            self._conversation.add(text, reply.text, reply.thoughts)
            if self._history is not None:
                self._save(self._history)
        if interrupted and not self._entries.is_interactive:
            raise typer.Exit(Exit.INTERRUPTED)

    def _obey(self, command: str) -> bool:
        word, _, argument = command.partition(" ")
        argument = argument.strip()
        if word in ("quit", "exit"):
            return False
        if word == "help":
            say(HELP)
        elif word == "reset":
            self._conversation.replace(self._conversation.messages[: self._conversation.system is not None])
        elif word == "system":
            self._conversation.system = argument or None
        elif word in ("save", "load"):
            self._move(word, argument)
        else:
            raise RequestError(
                f"/{visible(word)[:40]} is no command, expected one of those that /help lists; write // for a message "
                "that begins with /",
                code="chat_command",
            )
        return True

    def _move(self, word: str, argument: str) -> None:
        from coterie.runtime.history import load_history

        if not argument:
            raise RequestError(f"/{word} has no file, expected /{word} FILE", code="chat_command")
        path = Path(argument)
        with suppress(RuntimeError):
            path = path.expanduser()
        if word == "save":
            self._save(path)
        else:
            self._conversation.replace(load_history(path))
        say(f"{len(self._conversation.messages)} messages", style="dim")

    def _save(self, path: Path) -> None:
        from coterie.runtime.history import save_history

        save_history(path, self._conversation.messages)


def answer_of(reply: "Reply") -> Iterator[str]:
    """The answer's pieces; what the model thinks goes to standard error in between."""
    thinking = False
    for piece in reply:
        if piece.is_thought:
            yield ""  # whoever waits for the first piece draws on standard error until it comes
            aside(piece.text)
        else:
            if thinking:
                aside("\n\n")
            yield piece.text
        thinking = piece.is_thought
    if thinking:
        aside("\n")
