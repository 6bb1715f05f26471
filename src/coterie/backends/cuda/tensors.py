"""Tensors in the form in which the verbs take them: dense, aligned, indices as int32.

PyTorch can do little with unsigned integers of more than 8 bits: here they are seen as signed ones of the same bits.
"""

import torch

from coterie.backends.cuda.device import within_memory

_ALIGNMENT = 16
"""Bytes that a weight's address is a multiple of, so that kernels can fetch 16 bytes at a time."""

_LARGEST = (1 << 31) - 1
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def dtype_of(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@within_memory
def dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous()


@within_memory
def aligned(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def either_way(stack: torch.Tensor) -> torch.Tensor:
    """[..., K, N] as it lies if it or its transpose is dense, else a dense copy."""
    return aligned(stack.mT).mT if stack.mT.is_contiguous() else aligned(stack)


@within_memory
def cast(tensor: torch.Tensor, name: str) -> torch.Tensor:
    return tensor.to(dtype_of(name))


@within_memory
def zeros(shape: tuple[int, ...], name: str, like: torch.Tensor) -> torch.Tensor:
    dtype = dtype_of(name)
    return torch.zeros(shape, dtype=_SIGNED.get(dtype, dtype), device=like.device).view(dtype)


def extremes(ids: torch.Tensor) -> tuple[int, int] | None:
    """The least and the greatest of integers, for which this waits; None where there is nothing to be read."""
    if ids.numel() == 0 or is_capturing(ids):
        return None
    offset, signed = 0, _SIGNED.get(ids.dtype)
    if signed is not None:
        # Turning the highest bit moves the unsigned range down onto the signed one, in order.
        offset = -torch.iinfo(signed).min
        ids = ids.contiguous().view(signed) ^ -offset
    least, greatest = torch.stack(torch.aminmax(ids)).tolist()
    return least + offset, greatest + offset


@within_memory
def indices(ids: torch.Tensor) -> torch.Tensor:
    """Integers as dense int32; those out of every range are negative or very large there, too."""
    ids = ids.contiguous()
    if ids.dtype == torch.uint16:
        return ids.view(torch.int16).to(torch.int32) & 0xFFFF
    ids = ids.view(_SIGNED.get(ids.dtype, ids.dtype))
    return (ids.clamp(-1, _LARGEST) if ids.dtype == torch.int64 else ids).to(torch.int32)


@within_memory
def spread(
    ids: torch.Tensor | None, n: int, shape: tuple[int, ...], batch: tuple[int, ...], like: torch.Tensor
) -> torch.Tensor:
    if ids is None:
        ids = torch.arange(n, dtype=torch.int32, device=like.device).reshape(shape)
    return ids.expand(batch).reshape(-1).contiguous()


def ascends(ids: torch.Tensor) -> bool:
    """Whether ids never fall, for which this waits; a promise that cannot be looked into is believed."""
    if is_capturing(ids):
        return True
    flat = ids.reshape(-1)
    return not bool((flat[1:] < flat[:-1]).any())


def is_capturing(tensor: torch.Tensor) -> bool:
    """Whether a CUDA graph is being captured, so that nobody may wait."""
    return bool(tensor.is_cuda and torch.cuda.is_current_stream_capturing())
