"""Weights of a checkpoint on the GPU, and rows of an embedding."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from coterie.arrays import numpy_as_torch
from coterie.backends.cuda.kernels.embed import embed_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv
from coterie.errors import CapacityError
from coterie.formats import Packed
from coterie.ops import dispatch

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes in all."""

_STAGE = 64 << 20
"""Bytes of a staging buffer: one is filled from the file while the GPU fetches the other."""

_RESERVE = 512 << 20
"""Bytes of the GPU's memory that weights must leave: for activations, kernels, and the first keys and values."""

_BLOCK = 1024


def adopt(weights: Mapping[str, Any], device: torch.device, progress: Progress | None = None) -> dict[str, Any]:
    """The weights as tensors on the device; `CapacityError` before the first byte where they do not fit."""
    total = sum(part.nbytes for weight in weights.values() for part in _parts(weight))
    upload = _Upload(device, total, progress)
    return {path: _adopted(weight, upload) for path, weight in weights.items()}


def _parts(weight: Any) -> Iterator[np.ndarray]:
    parts = (weight.codes, weight.scales, weight.biases) if isinstance(weight, Packed) else (weight,)
    return (part for part in parts if part is not None)


def _adopted(weight: Any, upload: "_Upload") -> Any:
    if not isinstance(weight, Packed):
        return upload(weight)
    parts = [None if part is None else upload(part) for part in (weight.codes, weight.scales, weight.biases)]
    return dispatch.packed_like(weight, *parts)


class _Upload:
    """Copies arrays from the mapped file to the device, through pinned memory, piece by piece."""

    def __init__(self, device: torch.device, total: int, progress: Progress | None) -> None:
        self._device, self._total, self._progress, self._done = device, total, progress, 0
        self._stages: list[tuple[torch.Tensor, torch.cuda.Event]] = []
        if device.type == "cuda":
            _check_room(device, total)
            self._stages = [(torch.empty(_STAGE, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in "12"]

    def __call__(self, array: np.ndarray) -> torch.Tensor:
        if not self._stages:
            self._count(array.nbytes)
            return numpy_as_torch(np.array(array, order="C"))
        source = np.ascontiguousarray(array)
        like = numpy_as_torch(np.empty(0, source.dtype))
        target = torch.empty(source.shape, dtype=like.dtype, device=self._device)
        octets, place = source.reshape(-1).view(np.uint8), target.reshape(-1).view(torch.uint8)
        for begin in range(0, octets.size, _STAGE):
            piece = octets[begin : begin + _STAGE]
            stage, copied = self._stages[0]
            self._stages.reverse()
            copied.synchronize()
            stage.numpy()[: piece.size] = piece
            place[begin : begin + piece.size].copy_(stage[: piece.size], non_blocking=True)
            copied.record()
            self._count(piece.size)
        return target

    def _count(self, n_bytes: int) -> None:
        self._done += n_bytes
        if self._progress is not None:
            self._progress(self._done, self._total)


def _check_room(device: torch.device, needed: int) -> None:
    free, total = free_memory(device), torch.cuda.mem_get_info(device)[1]
    if needed + _RESERVE > free:
        raise CapacityError(
            f"the weights take {_gib(needed)} GiB, and {_gib(free)} of the GPU's {_gib(total)} GiB are free; "
            "expected half a GiB more than the weights: free some, take weights of fewer bits, or use device='cpu'",
            code="gpu_memory",
        )


def free_memory(device: torch.device) -> float:
    """Bytes that tensors can still take, those that PyTorch keeps in reserve included."""
    if device.type != "cuda":
        return math.inf
    reserved: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return reserved + float(torch.cuda.mem_get_info(device)[0])


def _gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:.1f}"


def embed(weight: Packed | torch.Tensor, ids: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    size = weight.shape[-1]
    out = torch.empty((len(ids), size), dtype=torch.float32, device=ids.device)
    parts: tuple[Any, ...] = (weight, None, None)
    options: dict[str, Any] = {"MODE": "plain", "BITS": 0, "GROUP": 0}
    if isinstance(weight, Packed):
        parts = (weight.codes.view(torch.int32), weight.scales, weight.biases)
        options = {"MODE": weight.mode, "BITS": weight.format.bits, "GROUP": weight.format.group_size}
    with on_device_of(ids):
        launch(
            embed_kernel, (len(ids), cdiv(size, _BLOCK)),
            *parts, ids, out, size, float(scale), **options, BLOCK=_BLOCK, num_warps=4, **early(ids, fused=False),
        )  # fmt: skip
    return out
