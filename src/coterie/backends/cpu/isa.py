"""Which instruction set the kernels are built for, and why.

The kernels are written once, over vectors of `lanes` 32-bit lanes; LLVM lowers them to the machine. What differs
between instruction sets is the number of lanes, whether multiply and add fuse, how sixteen table entries are looked up,
and how many accumulators the register file holds.
"""

import functools
import os
from dataclasses import dataclass

from coterie.errors import BackendUnavailableError

VARIABLE = "COTERIE_CPU_ISA"


@dataclass(frozen=True, slots=True)
class Isa:
    """One way to build the kernels.

    `table` is the register-wide look-up of f32 entries: "permvar16" (16 entries), "permps8" (8) or "" (none).
    `tile_rows` x `tile_tokens` accumulators are held in registers while multiplying matrices. `vnni`: products of small
    integers are added to their sum by one instruction; `integer_tokens`: tokens in a tile of integers.
    """

    name: str
    lanes: int
    fused: bool
    table: str
    tile_rows: int
    tile_tokens: int
    needs: tuple[str, ...]
    vnni: bool = False
    integer_tokens: int = 0

    @property
    def multiplies_integers(self) -> bool:
        """Whether there are kernels for activations of 16 and 8 bits: where integers multiply faster than floats."""
        return self.integer_tokens > 0


_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma", "f16c")
_AVX2 = ("avx2", "fma", "f16c")
ISAS = (
    Isa("avx512vnni", 16, True, "permvar16", 8, 3, (*_AVX512, "avx512vnni"), True, 6),
    Isa("avx512", 16, True, "permvar16", 8, 3, _AVX512, False, 6),
    Isa("avx2vnni", 8, True, "permps8", 4, 3, (*_AVX2, "avxvnni"), True, 2),
    Isa("avx2", 8, True, "permps8", 4, 3, _AVX2, False, 2),
    Isa("neon", 4, True, "", 8, 3, ("neon",)),
    Isa("portable", 4, False, "", 4, 2, ()),
)
_BY_NAME = {isa.name: isa for isa in ISAS}


@functools.cache
def machine_features() -> frozenset[str]:
    """LLVM's names of the instruction set extensions that this machine has."""
    from llvmlite import binding

    return frozenset(name for name, present in binding.get_host_cpu_features().items() if present)


def runs_here(isa: Isa) -> bool:
    """Whether this machine has everything that `isa` needs."""
    return set(isa.needs) <= machine_features()


@functools.cache
def choose(name: str) -> tuple[Isa, str]:
    """The instruction set to use and the reason; `name` is a name of `ISAS`, or "" for the widest that runs here."""
    if not name:
        isa = next(isa for isa in ISAS if runs_here(isa))
        return isa, f"the widest that this machine runs ({', '.join(isa.needs) or 'no extension needed'})"
    if name not in _BY_NAME:
        raise BackendUnavailableError(
            f"there is no instruction set {name!r} ({VARIABLE} or an argument says so); expected one of "
            f"{', '.join(_BY_NAME)}"
        )
    isa = _BY_NAME[name]
    if not runs_here(isa):
        missing = ", ".join(sorted(set(isa.needs) - machine_features()))
        raise BackendUnavailableError(
            f"kernels for {name} were asked for, but this machine lacks {missing}; leave {VARIABLE} unset"
        )
    return isa, "asked for by name"


_current: Isa | None = None


def current() -> Isa:
    """The instruction set in use: the environment's wish at first use, or the widest that this machine runs."""
    return _current or use(os.environ.get(VARIABLE, ""))


def use(name: str = "") -> Isa:
    """Build kernels for the instruction set called `name` from now on; "" is the widest that this machine runs."""
    global _current
    _current = choose(name)[0]
    return _current


def describe() -> str:
    """One line for people: the instruction set in use and why."""
    isa = current()
    widest, reason = choose("")
    if isa is not widest:
        reason = f"asked for by name (by {VARIABLE} or by `use`); {widest.name} would run here, too"
    return f"{isa.name}: {isa.lanes} lanes of 32 bits; {reason}"
