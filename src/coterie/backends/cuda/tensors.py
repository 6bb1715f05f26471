"""Tensors in the form in which the verbs take them: dense, aligned, indices as int32."""

import torch

from coterie.backends.cuda.device import within_memory

_ALIGNMENT = 16
"""Bytes that a weight's address is a multiple of, so that kernels can fetch 16 bytes at a time."""

_LARGEST = (1 << 31) - 1


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
    return torch.zeros(shape, dtype=dtype_of(name), device=like.device)


def extremes(ids: torch.Tensor) -> tuple[int, int] | None:
    """The least and the greatest of integers, for which this waits; None where there is nothing to be read."""
    if ids.numel() == 0 or is_capturing(ids):
        return None
    least, greatest = torch.stack(torch.aminmax(_signed(ids))).tolist()
    return least, greatest


@within_memory
def indices(ids: torch.Tensor) -> torch.Tensor:
    """Integers as dense int32; those out of every range are negative or very large there, too."""
    if ids.dtype == torch.uint32:
        return ids.contiguous().view(torch.int32)
    if ids.dtype == torch.uint64:
        ids = ids.view(torch.int64)
    if ids.dtype == torch.int64:
        ids = ids.clamp(-1, _LARGEST)
    return ids.to(torch.int32).contiguous()


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


def _signed(ids: torch.Tensor) -> torch.Tensor:
    """The same integers in a dtype that PyTorch can compare."""
    if ids.dtype == torch.uint64:
        return ids.view(torch.int64)
    return ids.to(torch.int64) if ids.dtype in (torch.uint16, torch.uint32) else ids


def is_capturing(tensor: torch.Tensor) -> bool:
    """Whether a CUDA graph is being captured, so that nobody may wait."""
    return bool(tensor.is_cuda and torch.cuda.is_current_stream_capturing())
