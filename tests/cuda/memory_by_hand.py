"""Memory as kernels see it that are run by hand: pointers into arrays, shared memory, copies from one to the other.

Every access outside of an array is an error; copies arrive when they are waited for, and not before; shared memory is
poisoned.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_IN_ARRAY = 40
"""Bits of an address that count the elements of an array."""


class Values(np.ndarray):
    """What a kernel calls a tensor."""

    def to(self, dtype: Any, bitcast: bool = False) -> "Values":
        return self.view(dtype) if bitcast else self.astype(dtype)

    def broadcast_to(self, shape: Any) -> "Values":
        return as_values(np.broadcast_to(self, tuple(shape)))

    @property
    def type(self) -> Any:
        return SimpleNamespace(layout=None)


def as_values(array: Any, dtype: Any = None) -> Values:
    return np.asarray(array, dtype).view(Values)


class Memory:
    """The arrays that pointers point to: an address is an array's number, and a place in it."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def pointer(self, tensor: Any) -> "Pointer":
        import torch

        flat = tensor.detach().contiguous().view(-1)
        assert flat.data_ptr() == tensor.data_ptr(), "a kernel is given contiguous tensors"
        is_bfloat16 = flat.dtype == torch.bfloat16
        array = flat.view(torch.int16).numpy().view(BFLOAT16) if is_bfloat16 else flat.numpy()
        self.arrays.append(array)
        return Pointer(self, as_values((len(self.arrays) - 1) << _IN_ARRAY, np.int64), array.dtype)

    def places(self, pointer: "Pointer", mask: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(array, which of the pointer's elements are in it, their places), for those that are not masked."""
        numbers = pointer.address >> _IN_ARRAY
        for number in np.unique(numbers[mask]):
            here = mask & (numbers == number)
            place = pointer.address[here] & ((1 << _IN_ARRAY) - 1)
            array = self.arrays[number]
            assert (place < len(array)).all(), f"place {place.max()} of an array of {len(array)}"
            yield array, here, place


class Pointer:
    def __init__(self, memory: Memory, address: Values, element: np.dtype) -> None:
        self.memory, self.address, self.element = memory, address, element
        self.dtype = SimpleNamespace(element_ty=element)

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.memory, as_values(self.address + np.asarray(offset, np.int64)), self.element)

    def __getitem__(self, index: Any) -> "Pointer":
        return Pointer(self.memory, self.address[index], self.element)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.address.shape


class Shared:
    """Shared memory, or part of it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def index(self, place: Any) -> "Shared":
        return Shared(self.array[int(place)])

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        return Shared(self.array[(np.s_[:],) * dim + (np.s_[start : start + length],)])

    def permute(self, order: Any) -> "Shared":
        return Shared(self.array.transpose(order))

    def reinterpret(self, _dtype: Any, shape: Any, _layout: Any) -> "Shared":
        assert tuple(shape) == self.shape
        return self

    def load(self, _layout: Any = None) -> Values:
        return as_values(self.array.copy())

    def store(self, values: Any) -> None:
        assert self.array.shape == np.shape(values)
        self.array[...] = values


class Copies:
    """Copies into shared memory, which are made when they are waited for."""

    def __init__(self) -> None:
        self.groups: list[list[Callable[[], None]]] = [[]]

    def async_copy_global_to_shared(self, room: Shared, pointer: Pointer, mask: Any = None) -> None:
        assert room.shape == pointer.shape
        values = load(pointer, mask, 0)
        self.groups[-1].append(lambda: room.store(values))

    def commit_group(self) -> None:
        self.groups.append([])

    def wait_group(self, n_left: int) -> None:
        n_done = max(0, len(self.groups) - 1 - n_left)
        for group in self.groups[:n_done]:
            for copy in group:
                copy()
        del self.groups[:n_done]


def load(pointer: Pointer, mask: Any = None, other: Any = 0) -> Values:
    mask = np.broadcast_to(True if mask is None else mask, pointer.shape)
    found = np.full(pointer.shape, other, pointer.element)
    for array, here, place in pointer.memory.places(pointer, mask):
        found[here] = array[place]
    return as_values(found)


def store(pointer: Pointer, values: Any, mask: Any = None) -> None:
    mask = np.broadcast_to(True if mask is None else mask, pointer.shape)
    values = np.broadcast_to(values, pointer.shape)
    for array, here, place in pointer.memory.places(pointer, mask):
        array[place] = values[here]


def where(condition: Any, one: Any, other: Any) -> Any:
    if isinstance(one, Pointer):
        return Pointer(one.memory, as_values(np.where(condition, one.address, other.address)), one.element)
    return as_values(np.where(condition, one, other))


def aligned(values: Any, size: Any) -> Any:
    """`values`, which are a multiple of `size`; pointers in bytes."""
    if isinstance(values, Pointer):
        assert (values.address * values.element.itemsize % size == 0).all()
    return values
