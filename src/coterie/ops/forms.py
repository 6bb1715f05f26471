"""The form in which a back end takes the arrays of each kind, and the way back to the caller's.

* NumPy arrays, for the cpu back end: C-contiguous and aligned; leading axes are flattened into one (T tokens, B
  matrices, R rows), indices are uint32 [R] and in range, nothing is empty. Arrays of PyTorch and JAX on the CPU are
  seen as NumPy arrays.
* Tensors of PyTorch on a GPU, for the cuda back end: the same, except that indices are int32, and that a door does not
  widen floats which kernels widen themselves (logits, probabilities, weights of slots). While a CUDA graph is captured
  nobody can look at indices: then a kernel may meet ids out of range, and must not follow them. Arrays of JAX and CuPy
  on a GPU are seen as tensors.
* MLX arrays, for the mlx back end: the caller's own arrays and shapes; indices are checked but not flattened, as MLX's
  operations broadcast themselves.

Results come back in the form in which their arguments went in.
"""

import sys
from typing import Any

import numpy as np

from coterie.arrays import (
    Array,
    Kind,
    as_numpy,
    as_torch,
    dtype_name,
    from_numpy,
    from_torch,
    numpy_as_torch,
    torch_as_numpy,
)
from coterie.errors import ArgumentError
from coterie.formats import Packed
from coterie.ops import dispatch

Shape = tuple[int, ...]


class Form:
    """The form of NumPy arrays; every other one says in what it differs."""

    kind: Kind = "numpy"

    flattens = True
    """Whether leading axes are flattened into one."""

    is_native = True
    """Whether the back end takes the caller's arrays themselves, and not what it sees in their memory."""

    def verb(self, name: str) -> Any:
        """The function `name` of the back end."""
        return dispatch.verb(name, self.kind)

    def view(self, array: Array) -> Array:
        """The array as the back end's library sees it, in the same memory."""
        return array

    def dense(self, array: Array) -> Array:
        """An activation: rows in one piece; a copy where they were not."""
        return _dense(array)

    def weight(self, array: Array) -> Array:
        """A weight, which may lie at any alignment, as it does in a mapped file; a strided one is copied."""
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    def either_way(self, array: Array) -> Array:
        """A stack of matrices [..., K, N] as it lies if it, or its transpose, is dense; else a dense copy."""
        return array if array.swapaxes(-1, -2).flags.c_contiguous else self.weight(array)

    def packed(self, packed: Packed) -> Packed:
        """The packed matrix with its parts as `weight` gives them.

        The result is remembered by `packed`, so that this and what a back end derives from it happens once.
        """
        twin: Packed | None = packed.derived.get("native", packed)
        if twin is packed:
            twin = packed.derived["native"] = self._twin(packed)
        return packed if twin is None else twin

    def _twin(self, packed: Packed) -> Packed | None:
        """None stands for the matrix itself, which need not point to itself."""
        given = (packed.codes, packed.scales, packed.biases)
        parts = [None if part is None else self.weight(part) for part in given]
        same = all(part is own for part, own in zip(parts, given, strict=True))
        return None if same else dispatch.packed_like(packed, *parts)

    def cast(self, array: Array, dtype: str) -> Array:
        """An array that is in form already, in another dtype; itself if it has that dtype."""
        return array if dtype_name(array) == dtype else array.astype(dispatch.numpy_dtype(dtype))

    def widened(self, array: Array) -> Array:
        """A dense array in f32, for verbs that compute in f32."""
        return self.cast(self.dense(array), "float32")

    def rows(self, array: Array, *last: int) -> Array:
        """An array that is in form already, its leading axes flattened into one in front of the `last` ones."""
        return array.reshape(-1, *last)

    def back(self, result: Array, shape: Shape) -> Array:
        """A result of the back end in the caller's shape and kind."""
        return result if result.shape == shape else result.reshape(shape)

    def zeros(self, shape: Shape, dtype: str, like: Array) -> Array:
        """Zeros of the caller's kind on the device of `like`: the answer to a question about nothing."""
        del like
        return dispatch.zeros(shape, dtype, self.kind)

    def dtype(self, name: str) -> Any:
        """A dtype by plain name, as the back end's library has it."""
        return dispatch.numpy_dtype(name)

    def extremes(self, ids: Array) -> tuple[int, int] | None:
        """The least and the greatest of integers as `view` gives them; None where there are none, or none can be
        read.
        """
        return (int(ids.min()), int(ids.max())) if ids.size else None

    def ids(self, ids: Array) -> Array:
        """Integers as `view` gives them and known to be in range, as the back end takes them."""
        return _dense(ids.astype(np.uint32, copy=False))

    def spread(self, ids: Array | None, n: int, shape: Shape, batch: Shape, like: Array) -> Array:
        """Ids of `shape` broadcast to `batch` and flattened; None counts to n through `shape`, on `like`'s device."""
        del like
        if ids is None:
            ids = np.arange(n, dtype=np.uint32).reshape(shape)
        if shape != batch:
            ids = np.broadcast_to(ids, batch)
        return np.ascontiguousarray(ids).reshape(-1)

    def ascends(self, ids: Array) -> bool:
        """Whether ids never fall, read in order."""
        flat = as_numpy(ids).reshape(-1)
        return not bool((flat[1:] < flat[:-1]).any())

    def scalar(self, number: Array) -> Any:
        """The factor that an array of one element holds."""
        return float(self.view(number).reshape(()))

    def add_to(self, accumulator: Array, outputs: Array, factor: Any) -> Array:
        """accumulator += factor * outputs where it lies, by the back end's `accumulate`; the accumulator."""
        target, added = self.view(accumulator), self.view(outputs)
        if not target.flags.writeable:
            raise ArgumentError("accumulator is read-only; pass one that may be changed in place", code="read_only")
        _refuse_overlap(target, added)
        dense = _dense(target)
        self.verb("accumulate")(dense, _dense(added), factor)
        if dense is not target:
            target[...] = dense
        return accumulator


class _TorchForm(Form):
    """Tensors of PyTorch on the CPU, seen as NumPy arrays."""

    kind: Kind = "torch"
    is_native = False

    def view(self, array: Array) -> Array:
        return torch_as_numpy(array)

    def dense(self, array: Array) -> Array:
        return _dense(self.view(array))

    def weight(self, array: Array) -> Array:
        return super().weight(self.view(array))

    def either_way(self, array: Array) -> Array:
        view = self.view(array)
        return view if view.swapaxes(-1, -2).flags.c_contiguous else super().weight(view)

    def back(self, result: Array, shape: Shape) -> Array:
        return numpy_as_torch(result if result.shape == shape else result.reshape(shape))


class _JaxForm(_TorchForm):
    """Arrays of JAX on the CPU, seen as NumPy arrays, which must not be written to."""

    kind: Kind = "jax"

    def view(self, array: Array) -> Array:
        return as_numpy(array)

    def back(self, result: Array, shape: Shape) -> Array:
        return from_numpy(result.reshape(shape), self.kind)

    def add_to(self, accumulator: Array, outputs: Array, factor: Any) -> Array:
        """The sum as a new array: JAX's arrays do not change."""
        total = np.array(self.view(accumulator), order="C")
        self.verb("accumulate")(total, self.dense(outputs), factor)
        return self.back(total, total.shape)


class _CudaForm(Form):
    """Tensors of PyTorch on a GPU."""

    kind: Kind = "cuda"

    def view(self, array: Array) -> Array:
        return array.detach() if array.requires_grad else array

    def dense(self, array: Array) -> Array:
        return self._tensors.dense(self.view(array))

    def weight(self, array: Array) -> Array:
        return self._tensors.aligned(self.view(array))

    def either_way(self, array: Array) -> Array:
        return self._tensors.either_way(self.view(array))

    def cast(self, array: Array, dtype: str) -> Array:
        return array if dtype_name(array) == dtype else self._tensors.cast(array, dtype)

    def widened(self, array: Array) -> Array:
        return self.dense(array)

    def back(self, result: Array, shape: Shape) -> Array:
        return from_torch(result.reshape(shape), self.kind)

    def zeros(self, shape: Shape, dtype: str, like: Array) -> Array:
        return self.back(self._tensors.zeros(shape, dtype, self.view(like)), shape)

    def dtype(self, name: str) -> Any:
        return self._tensors.dtype_of(name)

    def extremes(self, ids: Array) -> tuple[int, int] | None:
        found: tuple[int, int] | None = self._tensors.extremes(ids)
        return found

    def ids(self, ids: Array) -> Array:
        return self._tensors.indices(ids)

    def spread(self, ids: Array | None, n: int, shape: Shape, batch: Shape, like: Array) -> Array:
        return self._tensors.spread(ids, n, shape, batch, self.view(like))

    def ascends(self, ids: Array) -> bool:
        return bool(self._tensors.ascends(ids))

    def scalar(self, number: Array) -> Any:
        return self._tensors.cast(self.view(number).reshape(1), "float32")

    def add_to(self, accumulator: Array, outputs: Array, factor: Any) -> Array:
        target, added = self.view(accumulator), self.view(outputs)
        _refuse_overlap(_addresses(target), _addresses(added))
        dense = self._tensors.dense(target)
        self.verb("accumulate")(dense, self._tensors.dense(added), factor)
        if dense is not target:
            target.copy_(dense)
        return accumulator

    @property
    def _tensors(self) -> Any:
        return dispatch.get("cuda").tensors


class _CupyForm(_CudaForm):
    """Arrays of CuPy, seen as tensors."""

    kind: Kind = "cupy"
    is_native = False

    def view(self, array: Array) -> Array:
        return as_torch(array, self.kind)


class _JaxCudaForm(_CupyForm):
    """Arrays of JAX on a GPU, seen as tensors, which must not be written to."""

    kind: Kind = "jax_cuda"

    def add_to(self, accumulator: Array, outputs: Array, factor: Any) -> Array:
        """The sum as a new array: JAX's arrays do not change."""
        total = self.view(accumulator).clone(memory_format=sys.modules["torch"].contiguous_format)
        self.verb("accumulate")(total, self.dense(outputs), factor)
        return self.back(total, tuple(total.shape))


class _MlxForm(Form):
    """MLX's own arrays; what is not said here, MLX's operations do themselves."""

    kind: Kind = "mlx"
    flattens = False

    def dense(self, array: Array) -> Array:
        return array

    weight = either_way = dense

    def packed(self, packed: Packed) -> Packed:
        return packed

    def cast(self, array: Array, dtype: str) -> Array:
        return array if dtype_name(array) == dtype else dispatch.get("mlx").cast(array, dtype)

    def rows(self, array: Array, *last: int) -> Array:
        del last
        return array

    def back(self, result: Array, shape: Shape) -> Array:
        del shape
        return result

    def dtype(self, name: str) -> Any:
        return name

    def extremes(self, ids: Array) -> tuple[int, int] | None:
        return super().extremes(as_numpy(ids))

    def ids(self, ids: Array) -> Array:
        return self.cast(ids, "uint32")

    def spread(self, ids: Array | None, n: int, shape: Shape, batch: Shape, like: Array) -> Array:
        del n, shape, batch, like
        return ids

    def scalar(self, number: Array) -> Any:
        return number.reshape(())

    def add_to(self, accumulator: Array, outputs: Array, factor: Any) -> Array:
        """The sum as a new array: MLX's arrays do not change."""
        return self.verb("accumulate")(accumulator, outputs, factor)


FORMS: dict[Kind, Form] = {
    form.kind: form for form in (Form(), _TorchForm(), _JaxForm(), _CudaForm(), _CupyForm(), _JaxCudaForm(), _MlxForm())
}


def _dense(array: np.ndarray) -> np.ndarray:
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.array(array, order="C")


def _refuse_overlap(target: np.ndarray, added: np.ndarray) -> None:
    if np.may_share_memory(target, added) and np.shares_memory(target, added):
        raise ArgumentError("accumulator and expert_out share memory; pass separate arrays", code="aliasing")


class _Addresses:
    def __init__(self, tensor: Any) -> None:
        size = tensor.element_size()
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), True),
            "shape": tuple(tensor.shape),
            "strides": tuple(size * stride for stride in tensor.stride()),
            "typestr": f"|V{size}",
            "version": 3,
        }


def _addresses(tensor: Any) -> np.ndarray:
    """An array over the addresses of a tensor's elements. It stands for them in comparisons and must never be read."""
    return np.asarray(_Addresses(tensor))
