"""Whether this machine has a GPU that can be used, and why not; what to say when its memory runs out."""

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import triton

from coterie.errors import BackendUnavailableError, CapacityError

OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)
"""Ampere: the oldest GPUs of NVIDIA's that Triton compiles for."""

Verb = TypeVar("Verb", bound=Callable[..., Any])


def version_of(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


if version_of(triton.__version__) < OLDEST_TRITON:
    # Here, because the kernels' own imports would fail next, and say less.
    raise ImportError(
        f"Triton {triton.__version__} is too old, {'.'.join(map(str, OLDEST_TRITON))} is the oldest known"
    )


def check_machine() -> None:
    """`BackendUnavailableError` unless there is a GPU that can be used, or Triton's interpreter stands in for it."""
    if triton.knobs.runtime.interpret:
        return
    if torch.version.cuda is None and torch.version.hip is None:
        raise BackendUnavailableError(
            f"PyTorch {torch.__version__} is built for the CPU alone; install a build for your GPU: "
            "https://pytorch.org/get-started"
        )
    try:
        torch.cuda.init()
        capability = torch.cuda.get_device_capability()
    except (RuntimeError, AssertionError) as cause:
        first_line = str(cause).strip().partition("\n")[0]
        raise BackendUnavailableError(
            f"the GPU cannot be used ({first_line}); look at nvidia-smi, and at CUDA_VISIBLE_DEVICES"
        ) from cause
    if torch.version.hip is None and capability < OLDEST_CAPABILITY:
        raise BackendUnavailableError(
            f"{torch.cuda.get_device_name()} has compute capability {_dotted(capability)}, expected "
            f"{_dotted(OLDEST_CAPABILITY)} or newer; use the CPU: move tensors there with .cpu()"
        )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def within_memory(verb: Verb) -> Verb:
    """`verb`, which says in numbers what was missing when the GPU's memory runs out: a `CapacityError`."""

    @functools.wraps(verb)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return verb(*arguments, **options)
        except torch.OutOfMemoryError as shortage:
            message = _shortage(verb.__name__, str(shortage))
        # Raised out here, because an error that remembers the other one keeps the tensors of its frames alive.
        raise CapacityError(message, code="gpu_memory")

    return run  # type: ignore[return-value]


def _shortage(verb: str, report: str) -> str:
    asked = re.search(r"Tried to allocate ([\d.]+ \w+)", report)
    if asked is None:
        return f"{verb} needs more of the GPU's memory than is free ({report.partition('. ')[0]}); pass fewer tokens"
    free, total = (amount / 2**30 for amount in torch.cuda.mem_get_info())
    return (
        f"{verb} needs {asked[1]} more of the GPU's memory, of which {free:.2f} of {total:.2f} GiB are free outside of "
        "PyTorch's own reserve; pass fewer tokens at once, or free other tensors"
    )
