"""How rules word lists: names that differ in their layer in one line, long lists cut, sizes in decimal units."""

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from coterie.checkpoint.files import show

_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")
_SHOWN = 3


def by_layer(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(wording, names): names that are the same but for the number of their layer come together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_LAYER.sub("*", name, count=1), []).append(name)
    return [(_worded(pattern, group), group) for pattern, group in groups.items()]


def _worded(pattern: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return plain(names[0])
    numbers = sorted({int(match[0]) for name in names if (match := _LAYER.search(name)) and len(match[0]) < 10})
    return f"{plain(pattern)} (layers {ranges(numbers)})"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers in order, neighbours joined, at most a few runs: 0-4, 6."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return listed(texts, 8)


def listed(items: Sequence[str], shown: int = _SHOWN) -> str:
    """The first few, and how many more there are."""
    more = len(items) - shown
    return ", ".join(items[:shown]) + (f" and {more:,} more" if more > 0 else "")


def plain(name: str, limit: int = 200) -> str:
    """A name that a stranger wrote: as it is where it is plain, escaped and short where it is not."""
    return name if name.isascii() and name.isprintable() and len(name) <= limit else show(name, limit)


def counted(number: int, noun: str) -> str:
    """ "1 tensor", "2,000 tensors"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(nbytes: int) -> str:
    """Bytes in decimal units: 512 B, 8.1 MB, 15.6 GB."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if nbytes >= factor:
            return f"{nbytes / factor:.1f} {unit}"
    return f"{nbytes} B"
