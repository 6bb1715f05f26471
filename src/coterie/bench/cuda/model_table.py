"""A record of a whole model on the device for people, a line for each work, which can be printed as it comes."""

from typing import Any

from coterie.bench.cuda import table

Figures = dict[str, Any]

_COLUMNS = ("", "tokens/s", "ms", "range", "GB read", "of limit", "peak GiB")
_LAYOUT = "{:<26}{:>11}{:>10} {:>17}{:>9}{:>15}{:>10}"
_LIMIT_TITLES = {"read": "reading", "bf16": "bf16"}


def heading(record: Figures) -> list[str]:
    """The model, the device and its limits, one fact a line."""
    weights, token = record["weight_bytes"] / 2**30, record["token_bytes"] / 1e9
    return [f"{record['model']}: {weights:.2f} GiB of weights, {token:.2f} GB for a token", *table.heading(record)]


def columns() -> str:
    """What stands over the lines."""
    return _LAYOUT.format(*_COLUMNS).rstrip()


def line(row: Figures) -> str:
    """A row."""
    seconds = row["seconds"]
    return _LAYOUT.format(
        title(row),
        f"{row['rate']['median']:,.0f}",
        f"{seconds['median'] * 1e3:.3f}",
        f"{seconds['low'] * 1e3:.3f}..{seconds['high'] * 1e3:.3f}",
        "" if row["n_bytes"] is None else f"{row['n_bytes'] / 1e9:.2f}",
        f"{row['limit_ratio']['median']:.2f} {_LIMIT_TITLES[row['limit']]}",
        f"{row['peak_memory'] / 2**30:.1f}",
    )


def title(row: Figures) -> str:
    """What was done."""
    return row["work"] if row["limit"] == "read" else f"{row['work']} of {row['tokens']:,} tokens"


def notes(record: Figures) -> list[str]:
    """What the figures mean."""
    settings = record["settings"]
    return [
        f"{settings['repeats']} rounds of {settings['steps']} steps behind {settings['prompt']:,} tokens, each to a "
        "token that is drawn on the device and read by the host one step later; ms of a step, tokens/s of all texts. "
        "bit for bit: each text as it would be alone. GB read: weights, experts as a uniform router touches them, keys "
        "and values. of limit: those bytes over the time and the read bandwidth; of a prompt, two operations for each "
        "active weight of the layers over the time and the bf16 rate."
    ]
