"""`coterie info`: what a checkpoint holds, in figures, and how fast it can be here; no weight is read."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from coterie.cli.console import print_json, stderr, stdout, visible
from coterie.cli.failures import guarded
from coterie.cli.interrupts import Interrupts
from coterie.cli.options import AsJson, Debug
from coterie.errors import RequestError

if TYPE_CHECKING:
    from coterie.bench.estimate import Estimate
    from coterie.models.description import Description, WeightDescription

_CONTEXT = 4096


def info(
    model: Annotated[
        str | None, typer.Argument(help="A folder or a hub id. Without it, the bundled model.", show_default=False)
    ] = None,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            metavar="GB/S", help="Take this read bandwidth instead of measuring it.", min=1e-3, show_default=False
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure the machine's read bandwidth: about a second.")
    ] = True,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens before the one that is estimated.", min=1, show_default="4096, or all there is"),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show family, sizes, experts, quantisation by layer, bytes read per token, and the tokens a second they allow.

    The tokens a second are an upper limit, from the machine's read bandwidth and the bytes that one token reads.
    """
    with guarded(as_json=as_json, debug=debug) as interrupts:
        from coterie.runtime import describe

        description = describe(model)
        limit = None
        if measure or bandwidth is not None:
            limit = speed_limit(model, description, bandwidth, context, interrupts)
        if as_json:
            estimate = None if limit is None else limit.record()
            print_json({"model": model, **asdict(description), "estimate": estimate})
            return
        console = stdout()
        console.print(Text(f"{description.family} · {visible(model or 'the bundled model')}", style="bold"))
        grid = facts(description)
        if limit is not None:
            for name, fact in speed_facts(limit):
                grid.add_row(name, fact)
        console.print(grid)
        console.print()
        console.print(table(description))


def speed_limit(
    model: str | None, description: "Description", given: float | None, context: int | None, interrupts: Interrupts
) -> "Estimate":
    """The upper limit of decoding, from a bandwidth that is `given` in GB/s or measured now."""
    from coterie.bench.estimate import Bandwidth, estimate, measure_bandwidth
    from coterie.runtime.loading import read_architecture

    if given is not None and not isfinite(given):
        raise RequestError(f"--bandwidth is {given}, expected GB/s, a finite number", code="bandwidth")
    architecture = read_architecture(model)
    tokens = min(_CONTEXT, architecture.context_length) if context is None else context
    limit = estimate(architecture, description, Bandwidth((given or 1) * 1e9), tokens)
    if given is not None:
        return limit
    with stderr().status("Measuring the read bandwidth, about a second (--no-measure leaves it out)"):
        return replace(limit, bandwidth=measure_bandwidth(interrupts.check))


def speed_facts(limit: "Estimate") -> list[tuple[str, str]]:
    """The limit, what it is computed from, and where the bandwidth comes from."""
    rate, measured = limit.bandwidth.byte_rate, limit.bandwidth.measured
    source = "as given"
    if measured is not None:
        spread = f"{measured.low / 1e9:.1f} to {measured.high / 1e9:.1f} in {measured.n} passes"
        source = f"measured now, {limit.bandwidth.n_threads} threads, {spread}"
    rows = [
        ("speed limit", f"{speed(limit.tokens_per_second)} tokens/s at most, one sequence: what reading alone allows"),
        (
            "computed from",
            f"{rate / 1e9:.1f} GB/s over {size(limit.weight_bytes)} of weights and {size(limit.cache_bytes)} of "
            f"keys and values after {limit.context:,} tokens",
        ),
        ("bandwidth", f"{rate / 1e9:.1f} GB/s, {source}"),
    ]
    if limit.fits_cache:
        rows.append(("", "all weights fit the processor's cache, which is faster: the limit may not hold"))
    return rows


def speed(tokens_per_second: float) -> str:
    """Two digits or a whole number: 0.42, 3.1, 412, 12,345."""
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 10 else f"{tokens_per_second:.2g}"


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
    vectors = [weight for weight in model.weights if is_vector(weight)]
    for rows in alike(weight for weight in model.weights if not is_vector(weight)):
        layers = ranges(row.layer for row in rows if row.layer is not None)
        shape = "×".join(map(str, rows[0].shape))
        grid.add_row(visible(name_in_layer(rows[0])), layers, shape, short(rows[0].format), *sizes(rows))
    formats = ", ".join(dict.fromkeys(weight.format for weight in vectors))
    grid.add_row("norms, scales, biases", "", "", formats, *sizes(vectors))
    return grid


def is_vector(weight: "WeightDescription") -> bool:
    """A vector, or the biases of all experts, which are one vector for each."""
    return len(weight.shape) == 1 or weight.path.endswith(".bias")


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
