"""What the figures were measured on: processor, memory, versions."""

import os
import platform
import re
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = (
    "coterie",
    "numpy",
    "numba",
    "llvmlite",
    "mlx",
    "mlx-lm",
    "torch",
    "triton",
    "transformers",
    "onnxruntime",
    "llama-cpp-python",
    "gguf",
)
_DEFAULT_CACHE = 32 << 20


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except OSError:
        return ""


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core; 32 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KMG])", _read(str(path)).strip())
        if found:
            sizes.append(int(found[1]) << {"K": 10, "M": 20, "G": 30}[found[2]])
    return max(sizes, default=_DEFAULT_CACHE)


def processor() -> str:
    """The processor's name as the system gives it."""
    names = re.findall(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    family = re.search(r"^cpu family\s*:\s*(\d+)$.*?^model\s*:\s*(\d+)$", _read("/proc/cpuinfo"), re.M | re.S)
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name} (family {family[1]}, model {family[2]})" if family else name


def versions() -> dict[str, str]:
    """The versions of this library and of what it is compared with, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """How this process was called, by the program's bare name."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def system() -> str:
    """The operating system by name."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def hardware(n_threads: int, instruction_set: str) -> dict[str, Any]:
    """The machine as it stands: names, sizes in bytes, and how busy it was (load average of a minute)."""
    huge = re.search(r"\[(\w+)\]", _read("/sys/kernel/mm/transparent_hugepage/enabled"))
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": n_threads,
        "instruction_set": instruction_set,
        "last_level_cache": last_level_cache(),
        "memory": int(memory[1]) << 10 if memory else None,
        "transparent_huge_pages": huge[1] if huge else None,
        "system": system(),
        "load_average": round(os.getloadavg()[0], 2),
    }
