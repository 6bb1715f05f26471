"""Options that several commands share."""

from collections.abc import Iterable
from typing import Annotated

import typer

from coterie.errors import RequestError

ModelName = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A folder or a hub id. Without it, the bundled model.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, also for an error.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mlx.")]

Temperature = Annotated[float, typer.Option(help="0 always takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Sample among the k likeliest tokens; 0 is all.")]
TopP = Annotated[float, typer.Option(help="Sample among the likeliest tokens that hold this probability.")]
MinP = Annotated[float, typer.Option(help="Sample among tokens at least this times as likely as the likeliest.")]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1: tokens of the prompt and the text become less likely.")
]
PresencePenalty = Annotated[float, typer.Option(help="Taken from the logit of each token of the text.")]
FrequencyPenalty = Annotated[float, typer.Option(help="The same, times how often the token is in the text.")]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID=NUMBER",
        help="Added to the logit of a token; -inf bans it; may be given again.",
        show_default=False,
    ),
]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.", show_default=False)]


def parsed_biases(arguments: Iterable[str]) -> dict[int, float] | None:
    """{token id: bias} of arguments like "17=-2.5"; None without any. `RequestError` for one that reads otherwise."""
    biases: dict[int, float] = {}
    for argument in arguments:
        token_id, separator, bias = argument.partition("=")
        try:
            key, value = int(token_id), float(bias)
        except ValueError:
            separator = ""
        if not separator or key in biases:
            expected = "ID=NUMBER, each token once"
            raise RequestError(f"logit_bias is {argument[:60]!r}, expected {expected}", code="request_logit_bias")
        biases[key] = value
    return biases or None
