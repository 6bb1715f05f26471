"""Kernels in Gluon, Triton's lower language, which are for Hopper GPUs; and whether they can be had."""

import contextlib
import functools
import warnings
from typing import Any

import torch
import triton

from coterie.backends.cuda.device import version_of
from coterie.backends.cuda.launch import INTERPRETED

__all__ = [
    "NEWEST_TRITON",
    "attend_prompt_kernel",
    "half_linear_kernel",
    "half_rows_kernel",
    "serves",
    "single_linear_kernel",
    "single_rows_kernel",
    "stream_rows_kernel",
]

NEWEST_TRITON = (3, 9)
"""The last whose Gluon is known: it is young, and changes."""

attend_prompt_kernel: Any = None
half_linear_kernel: Any = None
half_rows_kernel: Any = None
single_linear_kernel: Any = None
single_rows_kernel: Any = None
stream_rows_kernel: Any = None
if version_of(triton.__version__) <= NEWEST_TRITON:
    with contextlib.suppress(ImportError):  # builds for other GPUs may lack what is for NVIDIA's
        from coterie.backends.cuda.kernels.hopper.attend import attend_prompt_kernel
        from coterie.backends.cuda.kernels.hopper.linear import half_linear_kernel
        from coterie.backends.cuda.kernels.hopper.rows import half_rows_kernel
        from coterie.backends.cuda.kernels.single.linear import single_linear_kernel
        from coterie.backends.cuda.kernels.single.rows import single_rows_kernel
        from coterie.backends.cuda.kernels.stream.rows import stream_rows_kernel

_CAPABILITY = 9


@functools.cache
def serves(device: torch.device) -> bool:
    """Whether kernels in Gluon run on a device; a warning where its GPU is one for them and Triton is not."""
    if INTERPRETED.value or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(device)[0] != _CAPABILITY:
        return False
    if single_rows_kernel is None:
        warnings.warn(
            f"this GPU's fastest kernels are written for Triton up to {'.'.join(map(str, NEWEST_TRITON))} with Gluon, "
            f"found {triton.__version__}; slower ones are used. Install such a Triton, or a newer coterie",
            stacklevel=2,
        )
    return single_rows_kernel is not None
