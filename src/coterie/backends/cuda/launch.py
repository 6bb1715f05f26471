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
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from itertools import chain
from operator import attrgetter, itemgetter, or_
from typing import Any, NamedTuple, TypeAlias

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


_MOST_KNOWN = 1024
_ALIGNED = 16
"""Bytes. Kernels are compiled for pointers to multiples of them, and anew for others."""

_dtype_of = attrgetter("dtype")

Picks: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]


class _Form(NamedTuple):
    """The form of launches of a kernel: which arguments are tensors, which are values, and how both of them, tensors
    first, become what the compiled kernel takes. known: compiled kernels by what else makes a launch one of its kind.
    """

    tensors: Picks
    values: Picks
    in_order: Picks
    known: dict[tuple[Any, ...], Any]


_forms: dict[tuple[Any, ...], _Form] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """kernel[grid](*arguments, **options). Launches like an earlier one go past Triton's search: those whose tensors
    have its dtypes and alignments, and whose other arguments are equal. All tensors are on the current device.

    What is done for each argument is left to Python's loops in C: a prompt's launches are otherwise slower than its
    kernels.
    """
    if INTERPRETED.value or torch.version.hip is not None:
        kernel[grid](*arguments, **options)
        return
    given: tuple[Any, ...] = (*arguments, *options.values())
    form, given = _form_of(kernel, len(arguments), tuple(options), given)
    tensors, values = form.tensors(given), form.values(given)
    addresses = [*map(torch.Tensor.data_ptr, tensors)]
    misaligned = reduce(or_, addresses, 0) % _ALIGNED and tuple(address % _ALIGNED for address in addresses)
    key = (_current_device(), misaligned, *map(_dtype_of, tensors), *values)
    compiled = form.known.get(key)
    if compiled is not None:
        compiled[(*grid, 1, 1)[:3]](*form.in_order((*addresses, *values)))
        return
    compiled = kernel[grid](*arguments, **options)
    if compiled is not None:
        if len(form.known) >= _MOST_KNOWN:
            form.known.clear()
        form.known[key] = compiled


def _form_of(
    kernel: Any, n_first: int, named: tuple[str, ...], given: tuple[Any, ...]
) -> tuple[_Form, tuple[Any, ...]]:
    """The form of a launch, and its arguments with tuples taken apart: n_first in their order, and those `named`."""
    lengths: tuple[int | None, ...] | None = None
    types = tuple(map(type, given))
    form = _forms.get((id(kernel), n_first, named, types, lengths))
    if form is None and tuple in types:
        lengths = tuple([len(part) if type(part) is tuple else None for part in given])
        given = tuple(chain.from_iterable([part if type(part) is tuple else (part,) for part in given]))
        types = tuple(map(type, given))
        form = _forms.get((id(kernel), n_first, named, types, lengths))
    if form is None:
        form = _new_form(_places(kernel.arg_names, n_first, named), types, lengths)
        _forms[id(kernel), n_first, named, types, lengths] = form
    return form, given


def _places(names: Sequence[str], n_first: int, named: tuple[str, ...]) -> tuple[int, ...]:
    """Where a kernel's arguments stand in a launch: n_first in their order, and those `named`, options among them."""
    return (*range(n_first), *(n_first + named.index(name) for name in names[n_first:] if name in named))


def _new_form(places: Sequence[int], types: Sequence[type], lengths: Sequence[int | None] | None) -> _Form:
    """The form of launches whose arguments, tuples of these `lengths` taken apart, are of these types; `places` are the
    kernel's among the arguments.
    """
    tensors = [index for index, kind in enumerate(types) if issubclass(kind, torch.Tensor)]
    values = [index for index, kind in enumerate(types) if not issubclass(kind, torch.Tensor)]
    stands_at = {index: place for place, index in enumerate((*tensors, *values))}
    if lengths is None:
        return _Form(_picks(tensors), _picks(values), _picks([stands_at[place] for place in places]), {})
    indices = iter(range(len(types)))
    inside = [[stands_at[next(indices)] for _ in range(1 if n is None else n)] for n in lengths]
    parts = [itemgetter(inside[place][0]) if lengths[place] is None else _picks(inside[place]) for place in places]
    return _Form(_picks(tensors), _picks(values), lambda passed: [part(passed) for part in parts], {})


def _picks(places: Sequence[int]) -> Picks:
    """What takes the elements at some places out of a sequence, as a tuple."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda parts: tuple([parts[place] for place in places])


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
