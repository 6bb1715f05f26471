"""Coterie's operations are for inference: a forward pass that is asked for its gradient says so by name."""

from collections.abc import Callable
from typing import Any

import torch

from coterie.errors import UnsupportedError


class _ForwardOnly(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(_: Any, run: Callable[[], Any], *tensors: Any) -> Any:  # noqa: ARG004
        return run()

    @staticmethod
    def backward(_: Any, *gradients: Any) -> Any:  # noqa: ARG004
        raise UnsupportedError(
            "a gradient was asked of a layer that runs on Coterie's kernels, which are for inference; train with "
            'another experts_implementation, such as "grouped_mm", on unquantised weights',
            code="gradient",
        )


def forward_only(run: Callable[[], Any], *tensors: Any) -> Any:
    """run(), a tensor; if one of `tensors` requires a gradient, its backward pass is an `UnsupportedError`."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _ForwardOnly.apply(run, *tensors)
    return run()
