"""The device that figures are measured on: its name, its memory, its cache."""

import gc
from typing import Any

import torch

from coterie.bench import machine

_HOST_CACHE = 1 << 10
_HOST_MEMORY = 1 << 30
"""What the interpreter's tests find in place of a GPU's: small, so that their layers are few."""


def cache_bytes(place: torch.device) -> int:
    """Bytes of the second-level cache."""
    if place.type != "cuda":
        return _HOST_CACHE
    return int(torch.cuda.get_device_properties(place).L2_cache_size)


def free_bytes(place: torch.device) -> int:
    """Bytes of memory that tensors can still take, those that PyTorch keeps in reserve included."""
    if place.type != "cuda":
        return _HOST_MEMORY
    reserve = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
    return int(torch.cuda.mem_get_info(place)[0]) + int(reserve)


def release(place: torch.device) -> None:
    """Give back what nobody holds any more, before the next weights are made."""
    gc.collect()
    if place.type == "cuda":
        torch.cuda.empty_cache()


def hardware(place: torch.device) -> dict[str, Any]:
    """The device and the host by name; sizes in bytes."""
    found: dict[str, Any] = {"gpu": "none: Triton's interpreter on the host", "cpu": machine.processor()}
    if place.type == "cuda":
        properties = torch.cuda.get_device_properties(place)
        found |= {
            "gpu": properties.name,
            "memory": int(properties.total_memory),
            "multiprocessors": int(properties.multi_processor_count),
            "capability": ".".join(map(str, torch.cuda.get_device_capability(place))),
            "cuda": torch.version.cuda,
        }
    return {**found, "second_level_cache": cache_bytes(place), "system": machine.system()}
