"""`coterie info`: what a checkpoint holds, before anything runs."""

from typing import Annotated, Any

import typer

from coterie.cli.console import print_json
from coterie.cli.failures import guarded
from coterie.cli.options import AsJson, Debug


def info(
    model: Annotated[str, typer.Argument(help="A folder or a hub id.", show_default=False)],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show family, sizes, quantisation by layer, experts, active parameters, bytes read per token."""
    with guarded(as_json=as_json, debug=debug):
        description: dict[str, Any] = {"model": model}
        print_json(description)
