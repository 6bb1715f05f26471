"""llama.cpp's own benchmark: what `test-backend-ops perf -o MUL_MAT_ID` prints, parsed.

Its shapes are its own and its runs stand between ours, not among them; products of one matrix, not layers.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

from coterie.bench.shapes import SHAPES
from coterie.errors import ArgumentError

_TIMEOUT = 3600
_LINE = re.compile(
    r"MUL_MAT_ID\((?P<arguments>[^)]*)\):\s+(?P<runs>\d+) runs\s*-\s*(?P<time>[\d.]+) us/run"
    r".*?-\s*(?:\x1b\[[\d;]*m)*\s*(?P<rate>[\d.]+) (?P<unit>[MGT])FLOPS"
)
_SIZES: tuple[str, ...] = ("n_mats", "n_used", "m", "n", "k")
_UNITS = {"M": 1e6, "G": 1e9, "T": 1e12}


def run(path: Path) -> list[dict[str, Any]]:
    """Run the program at `path` on the CPU and parse what it prints."""
    if not path.is_file():
        raise ArgumentError(f"there is no file {str(path)!r}; expected llama.cpp's test-backend-ops", code="bench")
    command = [str(path.resolve()), "perf", "-o", "MUL_MAT_ID", "-b", "CPU"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except OSError as cause:
        raise ArgumentError(f"{str(path)!r} cannot be run ({cause})", code="bench") from cause
    found = parse(result.stdout)
    if not found:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:]
        raise ArgumentError(
            f"{path.name} printed no MUL_MAT_ID line (exit code {result.returncode}): {''.join(last)}", code="bench"
        )
    return found


def parse(text: str) -> list[dict[str, Any]]:
    """A record for each line: `type`, sizes, `seconds`, `flop_rate`; and `shape`, where the sizes are one of ours."""
    return [_record(match) for match in _LINE.finditer(text)]


def _record(match: re.Match[str]) -> dict[str, Any]:
    arguments = dict(part.split("=", 1) for part in match["arguments"].split(",") if "=" in part)
    sizes: dict[str, int] = {name: int(arguments[name]) for name in _SIZES if name in arguments}
    return {
        "op": "MUL_MAT_ID",
        "type": arguments.get("type_a"),
        **sizes,
        "shape": _shape(sizes),
        "seconds": float(match["time"]) / 1e6,
        "flop_rate": float(match["rate"]) * _UNITS[match["unit"]],
    }


def _shape(sizes: dict[str, int]) -> str | None:
    for name, shape in SHAPES.items():
        matrices = {(shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)}
        if (sizes.get("m"), sizes.get("k")) in matrices and sizes.get("n_mats") == shape.n_experts:
            return name
    return None
