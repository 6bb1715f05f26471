"""What memory there is, what this process takes, and what a model costs that does not fit.

Linux says it in /proc and /sys; other systems through getrusage, sysconf and, on macOS, the command vm_stat. A figure
that a system does not give is None.
"""

import bisect
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import CapacityError
from coterie.models.description import Description


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes that are taken. Mapped files count as far as they are in memory.

    peak, resident: of this process, at its fullest moment and now. weights: all of the model's, mapped from its files;
    weights_resident: what of them this process has in memory now. gpu: what tensors of this process take on the GPU
    that the model is on; None for one on the CPU.
    """

    peak: int
    resident: int | None
    weights: int
    weights_resident: int | None
    gpu: int | None = None


def physical_memory() -> float:
    """Bytes of the machine; infinity where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def available_memory() -> int | None:
    """Bytes that can be had without pushing out another program; files in memory count, for they can be read again."""
    if sys.platform == "darwin":
        return _darwin_available()
    free = _kilobytes("/proc/meminfo", "MemAvailable")
    rooms = [room for room in (free, _control_group_room(Path("/sys/fs/cgroup"))) if room is not None]
    return min(rooms, default=None)


def peak_memory() -> int:
    """Bytes of this process that were in memory at its fullest moment, mapped files included."""
    peak = _kilobytes("/proc/self/status", "VmHWM")
    if peak is not None:
        return peak
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory_use(weights: int, addresses: Iterable[int], gpu: int | None = None) -> MemoryUse:
    """The use of this process; `weights` bytes are mapped, and `addresses` has one at least in each mapping of them."""
    resident = _kilobytes("/proc/self/status", "VmRSS")
    return MemoryUse(peak_memory(), resident, weights, resident_at(_read("/proc/self/smaps"), addresses), gpu)


def resident_at(smaps: str, addresses: Iterable[int]) -> int | None:
    """Bytes in memory of those mapped files in a text like /proc/self/smaps that hold one of the addresses."""
    if not smaps:
        return None
    wanted, total, inside = sorted(addresses), 0, False
    for line in smaps.splitlines():
        mapping = re.match(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)", line)
        if mapping:
            begin, end, inode = int(mapping[1], 16), int(mapping[2], 16), int(mapping[3])
            inside = inode != 0 and bisect.bisect_left(wanted, begin) < bisect.bisect_left(wanted, end)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) << 10
    return total


def check_memory(nbytes: int, room: Callable[[], float] | None = None) -> None:
    """`CapacityError` for more bytes of keys and values than the machine has, or than there is `room` on its GPU."""
    total = physical_memory() if room is None else room()
    if nbytes > total:
        whose = "the machine has" if room is None else "the GPU has room for"
        raise CapacityError(
            f"the keys and values of so many tokens take {nbytes / 2**30:.1f} GiB, and {whose} {total / 2**30:.1f}; "
            "shorten the prompt or ask for fewer tokens",
            code="cache_memory",
        )


def shortage(model: Description, available: int | None) -> str | None:
    """What it costs to run a model whose weights do not fit into the available memory; None where they do.

    What every token reads stays in memory before the rest does. If even that does not fit, each token pushes out what
    the next one needs first, and all of it is read from the disk each time.
    """
    if available is None or model.nbytes <= available:
        return None
    always = sum(weight.nbytes for weight in model.weights if weight.nbytes == weight.nbytes_per_token)
    share = max(0.0, (available - always) / (model.nbytes - always)) if model.nbytes > always else 0.0
    from_disk = (model.nbytes_per_token - always) * (1 - share) + (always if always > available else 0)
    return (
        f"the weights take {size(model.nbytes)} and {size(available)} of memory are available: they stay in their "
        f"files, and of the {size(model.nbytes_per_token)} that a token reads, about {size(from_disk)} come from the "
        "disk each time, so it is as slow as that; free some memory, or take weights of fewer bits"
    )


def size(nbytes: float) -> str:
    """ "17.2 GiB": bytes for a reader."""
    unit = min(3, int(math.log2(max(nbytes, 1)) // 10))
    return f"{nbytes:.0f} bytes" if unit == 0 else f"{nbytes / 1024**unit:.1f} {('KiB', 'MiB', 'GiB')[unit - 1]}"


def _kilobytes(path: str, name: str) -> int | None:
    found = re.search(rf"^{name}:\s*(\d+) kB", _read(path), re.MULTILINE)
    return int(found[1]) << 10 if found else None


def _control_group_room(root: Path) -> int | None:
    """What a container's limit leaves; files in memory are counted in its use, and give way."""
    limit, used = _read(root / "memory.max").strip(), _read(root / "memory.current").strip()
    if not (limit.isdigit() and used.isdigit()):
        return None
    files = re.search(r"^file (\d+)$", _read(root / "memory.stat"), re.MULTILINE)
    return max(0, int(limit) - int(used) + (int(files[1]) if files else 0))


def _darwin_available() -> int | None:
    """Free, inactive, speculative and purgeable pages, which is what can be had without swapping."""
    try:
        told = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return pages_of_vm_stat(told)


def pages_of_vm_stat(told: str) -> int | None:
    """Bytes that can be had, from what vm_stat printed."""
    page = re.search(r"page size of (\d+) bytes", told)
    counts = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s*(\d+)\.", told, re.MULTILINE)
    return int(page[1]) * sum(map(int, counts)) if page and counts else None


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text("ascii", "replace")
    except OSError:
        return ""
