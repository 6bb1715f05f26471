"""How kernels are launched: compiled, or interpreted on CPU tensors; on Hopper and newer before the previous one ends.

A kernel that is launched early (programmatic dependent launch) may do before `wait_for_previous` only what depends on
nothing that the kernel before it writes: address arithmetic, fetching weights. Every program of every kernel must pass
`wait_for_previous`, those without work too, and let the next kernel begin only then: so the end of a kernel means the
end of all kernels before it, and a kernel that begins early finds what all but the last of them wrote.

A kernel of few programs may let the next one begin before it waits itself, if that one fetches nothing but weights
before it waits: these are then on their way while two kernels are at work.

Triton takes the host 50 to 100 microseconds to see which compiled kernel a launch wants. `launch` remembers that.
"""

import contextlib
import functools
import gc
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1 before the first import)."""

SPEAKS_PTX = tl.constexpr(not triton.knobs.runtime.interpret and torch.version.hip is None)
"""Whether kernels may have instructions of NVIDIA's in them, where Triton has no word for what these do."""

_FIRST_WITH_EARLY_LAUNCH = (9, 0)


@triton.jit
def wait_for_previous(EARLY: tl.constexpr):
    """Wait until the kernels before have ended and what they wrote can be read."""
    if EARLY:
        gdc_wait()


@triton.jit
def let_next_begin(EARLY: tl.constexpr):
    """Let the next kernel begin once every program of this one has come here or ended."""
    if EARLY:
        gdc_launch_dependents()


@triton.jit
def wait_and_let_begin(SOON: tl.constexpr, EARLY: tl.constexpr):
    """Both, the next kernel begins first if `SOON`."""
    if SOON:
        let_next_begin(EARLY)
    wait_for_previous(EARLY)
    if not SOON:
        let_next_begin(EARLY)


@functools.cache
def _launches_early(device: torch.device) -> bool:
    if INTERPRETED.value or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= _FIRST_WITH_EARLY_LAUNCH


def early(tensor: torch.Tensor, *, fused: bool = True) -> dict[str, Any]:
    """The arguments of a kernel that let it begin early where the device of `tensor` can: EARLY, and the launch's own.

    The interpreter and other makers' GPUs know no such launch. fused: a product and a sum may be rounded once,
    together; said each time, because Triton's default changes between its releases.
    """
    if _launches_early(tensor.device):
        return {"EARLY": True, "launch_pdl": True, "enable_fp_fusion": fused}
    return {"EARLY": False, "enable_fp_fusion": fused}


class _Known(NamedTuple):
    """A compiled kernel, and where its arguments stand among those of a launch, the named ones behind the others."""

    compiled: Any
    places: tuple[int, ...]


_MOST_KNOWN = 4096
_ALIGNED = 16
"""Bytes. Kernels are compiled for pointers to multiples of them, and anew for others."""

_known: dict[tuple[Any, ...], _Known] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """kernel[grid](*arguments, **options). Launches like an earlier one go past Triton's search: those whose tensors
    have its dtypes and alignments, and whose other arguments are equal.

    A position of a kernel's has arguments of one type: 1, True and 1.0 are equal.
    """
    if INTERPRETED.value or torch.version.hip is not None:
        kernel[grid](*arguments, **options)
        return
    kind: list[Any] = [id(kernel), _current_device(), *options]
    passed: list[Any] = []
    _describe(arguments, kind, passed)
    _describe(options.values(), kind, passed)
    known = _known.get(key := tuple(kind))
    if known is not None:
        known.compiled[(*grid, 1, 1)[:3]](*[passed[place] for place in known.places])
        return
    compiled = kernel[grid](*arguments, **options)
    if compiled is not None:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[key] = _Known(compiled, _places(kernel.arg_names, len(arguments), tuple(options)))


def _places(names: Sequence[str], n_first: int, named: tuple[str, ...]) -> tuple[int, ...]:
    """Where a kernel's arguments stand in a launch: n_first in their order, and those `named`, options among them."""
    return (*range(n_first), *(n_first + named.index(name) for name in names[n_first:] if name in named))


def _describe(arguments: Iterable[Any], kind: list[Any], passed: list[Any]) -> None:
    """The arguments, addresses for tensors, join `passed`; what makes a launch one of its kind joins `kind`."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            address, dtype = argument.data_ptr(), argument.dtype
            is_usual = argument.is_cuda and address % _ALIGNED == 0
            kind.append(dtype if is_usual else (dtype, address % _ALIGNED, argument.is_cuda))
            passed.append(address)
        elif isinstance(argument, tuple):
            inner: list[Any] = []
            kind.append(len(argument))
            _describe(argument, kind, inner)
            passed.append(tuple(inner))
        else:
            kind.append(argument)
            passed.append(argument)


@contextlib.contextmanager
def recorded(graph: torch.cuda.CUDAGraph, capture_error_mode: str = "global") -> Iterator[None]:
    """Record launches in `graph`. Python's collector waits: what it frees, other graphs among it, calls the driver in
    ways that end a recording.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, capture_error_mode=capture_error_mode):
            yield
    finally:
        if collects:
            gc.enable()


@functools.cache
def _device_count() -> int:
    return torch.cuda.device_count()


_HERE = contextlib.nullcontext()


def _current_device() -> int:
    return 0 if _device_count() <= 1 else int(torch.cuda.current_device())


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on the device of `tensor`, which need not be the current one."""
    if tensor.device.type != "cuda" or _device_count() == 1 or tensor.device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)
