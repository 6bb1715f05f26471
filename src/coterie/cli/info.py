"""`coterie info`: what a checkpoint holds, in figures; nothing is run and no weight is read."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from coterie.cli.console import print_json, stdout, visible
from coterie.cli.failures import guarded
from coterie.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from coterie.models.description import Description, WeightDescription


def info(
    model: Annotated[
        str | None, typer.Argument(help="A folder or a hub id. Without it, the bundled model.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show family, sizes, experts, quantisation by layer, active parameters, bytes read per token."""
    with guarded(as_json=as_json, debug=debug):
        from coterie.runtime import describe

        description = describe(model)
        if as_json:
            print_json({"model": model, **asdict(description)})
            return
        console = stdout()
        console.print(Text(f"{description.family} · {visible(model or 'the bundled model')}", style="bold"))
        console.print(facts(description))
        console.print()
        console.print(table(description))


def facts(model: "Description") -> Table:
    """The model as a whole, one fact a line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    share = model.n_active_parameters / model.n_parameters
    bits = model.nbytes * 8 / model.n_parameters
    grid.add_row("parameters", f"{count(model.n_parameters)}, {count(model.n_active_parameters)} active ({share:.0%})")
    grid.add_row("weights", f"{size(model.nbytes)}, {bits:.2f} bits a parameter")
    grid.add_row("read per token", size(model.nbytes_per_token))
    grid.add_row("layers", layers_text(model.windows))
    grid.add_row("hidden size", f"{model.hidden_size:,}")
    grid.add_row("vocabulary", f"{model.vocab_size:,}")
    grid.add_row("context", f"{model.context_length:,} tokens")
    for experts in model.experts:
        chosen = f"{experts.n_experts} a layer, {experts.top_k} for a token"
        grid.add_row("experts", f"{chosen}, {experts.width:,} hidden units, in {experts.n_layers} layers")
    return grid


def layers_text(windows: Sequence[int | None]) -> str:
    """ "30: 25 with a window of 1,024 tokens, 5 with full attention"."""
    kinds = [
        f"{windows.count(window)} with " + ("full attention" if window is None else f"a window of {window:,} tokens")
        for window in sorted(set(windows), key=lambda window: window or 0, reverse=True)
    ]
    return f"{len(windows)}: {', '.join(kinds)}"


def table(model: "Description") -> Table:
    """The matrices, layers that agree in one line, and all vectors (norms, scales) together in the last."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    grid.add_column("matrix", overflow="fold")
    grid.add_column("layers", overflow="fold")
    grid.add_column("shape", justify="right", no_wrap=True)
    grid.add_column("format", no_wrap=True)
    grid.add_column("size", justify="right", no_wrap=True)
    grid.add_column("a token", justify="right", no_wrap=True)
    vectors = [weight for weight in model.weights if len(weight.shape) == 1]
    for rows in alike(weight for weight in model.weights if len(weight.shape) > 1):
        layers = ranges(row.layer for row in rows if row.layer is not None)
        shape = "×".join(map(str, rows[0].shape))
        grid.add_row(visible(name_in_layer(rows[0])), layers, shape, short(rows[0].format), *sizes(rows))
    formats = ", ".join(dict.fromkeys(weight.format for weight in vectors))
    grid.add_row("norms and scales", "", "", formats, *sizes(vectors))
    return grid


def short(name: str) -> str:
    """ "4bit g64" for "affine 4 bits, group 64"; other formats have short names."""
    return name.removeprefix("affine ").replace(" bits, group ", "bit g")


def sizes(weights: Sequence["WeightDescription"]) -> tuple[str, str]:
    """Bytes stored, and bytes read for one token."""
    return size(sum(weight.nbytes for weight in weights)), size(sum(weight.nbytes_per_token for weight in weights))


def alike(weights: Iterable["WeightDescription"]) -> list[list["WeightDescription"]]:
    """Weights of different layers with one name, shape and format, in the order in which a pass meets them."""
    groups: dict[tuple[object, ...], list[WeightDescription]] = {}
    for weight in weights:
        key = (name_in_layer(weight), weight.layer is None, weight.shape, weight.format)
        groups.setdefault(key, []).append(weight)
    return list(groups.values())


def name_in_layer(weight: "WeightDescription") -> str:
    """The path behind the layer's number, or the last part of one that stands outside of the layers."""
    marker = f".layers.{weight.layer}."
    return weight.path.partition(marker)[2] if weight.layer is not None else weight.path.rpartition(".")[2]


def ranges(layers: Iterable[int]) -> str:
    """Layer numbers, neighbours joined: 0-4, 6."""
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def count(number: int) -> str:
    """A number of parameters: 980, 12.8 K, 26.1 M, 30.5 B."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return str(number)


def size(nbytes: int) -> str:
    """Bytes in decimal units: 512 B, 8.1 MB, 15.6 GB."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"
