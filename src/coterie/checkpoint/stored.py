"""The tensors of open files: views by name, and matrices by their own formats.

In: validated files and the quantisation rules. Out: read-only arrays and `Packed` matrices. Refused: a tensor in two
files, and a matrix that does not fit what the rules say of it.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from coterie.arrays import FLOAT_DTYPES
from coterie.checkpoint.files import show
from coterie.checkpoint.header import TensorInfo
from coterie.checkpoint.quantization import QuantizationRules
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.errors import ArgumentError, CheckpointError, UnsupportedError
from coterie.formats import Packed


class StoredTensors:
    """`path` is the folder, `rules` the quantisation, `infos` {name: where it lies}, `tensors` {name: its array}.

    Arrays are views of the mapped files: taking one costs nothing until its bytes are touched, and they stay valid
    after the files are closed. They may be unaligned, because files written without padding are.
    """

    def __init__(self, path: Path, rules: QuantizationRules) -> None:
        """Of no file yet."""
        self.path = path
        self.rules = rules
        self.infos: dict[str, TensorInfo] = {}
        self.tensors: Mapping[str, np.ndarray] = _Tensors(self)
        self._home: dict[str, SafetensorsFile] = {}

    def add(self, file: SafetensorsFile) -> None:
        """The tensors of one more file; afterwards `CheckpointError` for one that an earlier file had and keeps."""
        twice = [tensor for tensor in file.tensors if tensor in self._home]
        for tensor, info in file.tensors.items():
            self._home.setdefault(tensor, file)
            self.infos.setdefault(tensor, info)
        if twice:
            raise CheckpointError(
                f"{file.path}: tensor {show(twice[0], 200)}: found a second time, first in "
                f"{self._home[twice[0]].path}, expected once; fetch the checkpoint again",
                code="tensor_duplicate",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors' names, sorted."""
        return tuple(sorted(self.infos))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(info.nbytes for info in self.infos.values())

    def file_of(self, name: str) -> Path:
        """The file that holds the tensor `name`."""
        return self._home[self._known(name)].path

    def array(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The tensor `name` as stored [its shape]; `CheckpointError` if it is missing or has another shape."""
        info = self.infos[self._known(name)]
        if shape is not None and info.shape != tuple(shape):
            raise self._wrong(name, "shape", f"shape {list(info.shape)}", f"{list(shape)}")
        return self._home[name].array(name)

    def packed(self, path: str, in_dims: int) -> "Packed | np.ndarray":
        """The matrix of the module at `path` [..., N, in_dims]: a `Packed`, or a plain float array if not quantised."""
        weight = f"{path}.weight"
        info, scales = self.infos[self._known(weight)], self.infos.get(f"{path}.scales")
        if f"{path}.global_scale" in self.infos:
            raise UnsupportedError(
                f"{self.file_of(weight)}: tensor {show(path + '.global_scale')} found; Coterie has no kernel for "
                "scaled nvfp4 yet: use a checkpoint without it",
                code="global_scale",
            )
        if len(info.shape) < 2 or (scales is not None and not scales.shape):
            raise self._wrong(weight, "shape", f"shape {list(info.shape)}", "a matrix")
        groups = None if scales is None else scales.shape[-1]
        scale_dtype = None if scales is None else str(scales.dtype)
        fmt = self.rules.format_for(path, info.shape[-1], groups, scale_dtype, in_dims)
        if fmt is None:
            return self._plain_matrix(weight, info, in_dims)
        biases = self.array(f"{path}.biases") if f"{path}.biases" in self.infos else None
        try:
            return Packed(self.array(weight), self.array(f"{path}.scales"), biases, fmt.bits, fmt.group_size, fmt.mode)
        except ArgumentError as error:
            raise CheckpointError(
                f"{self.file_of(weight)}: matrix {show(path)}: {error}; fetch the file again", code=error.code
            ) from error

    def _plain_matrix(self, weight: str, info: TensorInfo, in_dims: int) -> np.ndarray:
        if info.dtype not in FLOAT_DTYPES:
            raise self._wrong(weight, "weight_dtype", f"dtype {info.dtype}", "float32, float16 or bfloat16")
        if info.shape[-1] != in_dims:
            raise self._wrong(weight, "shape", f"shape {list(info.shape)}", f"[..., {in_dims}]")
        return self.array(weight)

    def _known(self, name: str) -> str:
        if name in self.infos:
            return name
        near = difflib.get_close_matches(name, self.infos, n=1) if len(self.infos) < 5000 else []
        hint = f" (the nearest name is {show(near[0])})" if near else ""
        raise CheckpointError(
            f"{self.path}: tensor {show(name, 200)} is missing{hint}; the checkpoint is incomplete or its config "
            "belongs to another model",
            code="tensor_missing",
        )

    def _wrong(self, name: str, code: str, found: str, expected: str) -> CheckpointError:
        return CheckpointError(
            f"{self.file_of(name)}: tensor {show(name, 200)}: found {found}, expected {expected}; the weights and "
            "config.json do not belong together: fetch both again",
            code=code,
        )


class _Tensors(Mapping[str, np.ndarray]):
    """The tensors by name; each look-up makes a new view, so that nothing is held that is not used."""

    def __init__(self, stored: StoredTensors) -> None:
        self._stored = stored

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._stored.infos:
            raise KeyError(name)
        return self._stored.array(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored.infos)

    def __len__(self) -> int:
        return len(self._stored.infos)
