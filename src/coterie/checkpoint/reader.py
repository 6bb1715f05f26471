"""A checkpoint, open: its config, its tensors as mapped read-only arrays, and its matrices by their own formats.

In: a folder (or an id of the hub, see `hub.py`). Out: a `Checkpoint`. Refused: what `header.py`, `folder.py`,
`config.py`, `quantization.py` and `scan.py` name. Every refusal leaves no file open.
"""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from coterie.arrays import FLOAT_DTYPES
from coterie.checkpoint import files, folder
from coterie.checkpoint.config import CONFIG, read_config
from coterie.checkpoint.files import show
from coterie.checkpoint.header import TensorInfo
from coterie.checkpoint.hub import local_folder
from coterie.checkpoint.quantization import QuantizationRules, rules
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.checkpoint.scan import scan_file
from coterie.errors import ArgumentError, CheckpointError, ConfigError, UnsupportedError
from coterie.formats import Packed

MAX_MEMBER = 256_000_000


def open_checkpoint(path_or_repo: str | Path, *, scan: bool = True) -> "Checkpoint":
    """Open the checkpoint in a folder, or fetch it from the hub by its id ("owner/name") first.

    scan: read every float and every scale once and refuse NaN, infinity and impossible scales (`scan.py`).
    """
    return Checkpoint(local_folder(path_or_repo), scan=scan)


class Checkpoint:
    """`path`, `config` (the raw object), `rules` (the quantisation) and `tensors` {name: read-only array}.

    Arrays are views of the mapped files: taking one costs nothing until its bytes are touched, and they stay valid
    after `close`. They may be unaligned, because files written without padding are.
    """

    def __init__(self, path: Path, *, scan: bool = True) -> None:
        self.path = path
        self.config: dict[str, Any] = read_config(path)
        self.rules: QuantizationRules = rules(self.config, str(path / CONFIG))
        self._files: dict[str, SafetensorsFile] = {}
        with ExitStack() as on_error:
            on_error.callback(self.close)
            self.infos = self._open_files()
            _check_declared(self)
            if scan:
                for file in self._files.values():
                    scan_file(file, self.infos)
            self.check_unchanged()
            on_error.pop_all()
        self.tensors: Mapping[str, np.ndarray] = _Tensors(self)

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

    def read_member(self, name: str, limit: int = MAX_MEMBER) -> bytes | None:
        """The bytes of another file of the folder (a tokenizer, a template); None if it is not there."""
        return read_member(self.path, name, limit)

    def check_unchanged(self) -> None:
        """`CheckpointError` if a file of weights was changed or replaced since it was opened."""
        for file in self._files.values():
            file.check_unchanged()

    def close(self) -> None:
        """Give the maps back; arrays already handed out stay valid."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open_files(self) -> dict[str, TensorInfo]:
        names, index = folder.weight_files(self.path)
        infos: dict[str, TensorInfo] = {}
        self._home: dict[str, SafetensorsFile] = {}
        for name in names:
            file = self._files[name] = SafetensorsFile(folder.member(self.path, name))
            for tensor, info in file.tensors.items():
                if tensor in self._home:
                    raise CheckpointError(
                        f"{file.path}: tensor {show(tensor, 200)}: found a second time, first in "
                        f"{self._home[tensor].path}, expected once; fetch the checkpoint again",
                        code="tensor_duplicate",
                    )
                infos[tensor], self._home[tensor] = info, file
        if index is not None:
            self._check_index(index)
        return infos

    def _check_index(self, index: dict[str, str]) -> None:
        """The index and the shards must tell the same story, tensor by tensor."""
        for tensor, name in index.items():
            if tensor not in self._files[name].tensors:
                raise self._stale(tensor, f"{folder.INDEX} says it is in {name}, which does not have it")
        for tensor, file in self._home.items():
            if tensor not in index:
                raise self._stale(tensor, f"{file.path.name} has it and {folder.INDEX} does not know it")

    def _stale(self, tensor: str, reason: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: tensor {show(tensor, 200)}: {reason}; expected both to agree: fetch the checkpoint again",
            code="index_stale",
        )

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

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._checkpoint.infos:
            raise KeyError(name)
        return self._checkpoint.array(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint.infos)

    def __len__(self) -> int:
        return len(self._checkpoint.infos)


def read_member(path: Path, name: str, limit: int = MAX_MEMBER) -> bytes | None:
    """The bytes of the file `name` in the folder `path`, at most `limit`; None if it is not there."""
    if not folder.has_member(path, name):
        return None
    return files.read_whole(folder.member(path, name), limit)


def _check_declared(checkpoint: Checkpoint) -> None:
    """What config.json declares is there, and what needs a declaration (bytes for a weight) has one."""
    quantized = any(name.endswith(".scales") for name in checkpoint.infos)
    if checkpoint.rules.default is not None and not quantized:
        raise CheckpointError(
            f"{checkpoint.path}: config.json declares a quantisation ({checkpoint.rules.default}) and no tensor has "
            "scales, expected both or neither; fetch the weights again, or remove the declaration",
            code="quantization_absent",
        )
    for path, fmt in checkpoint.rules.entries.items():
        if fmt is not None and "." not in path and f"{path}.weight" not in checkpoint.infos:
            raise ConfigError(
                f'{checkpoint.path / CONFIG}: "quantization": found {show(path)}, neither a known setting nor a '
                "module of this checkpoint, expected one of them; remove it if it has no meaning",
                code="quantization_key",
            )
    for name, info in checkpoint.infos.items():
        if name.endswith(".weight") and info.dtype.itemsize == 1:
            raise CheckpointError(
                f"{checkpoint.file_of(name)}: tensor {show(name, 200)}: found bytes ({info.dtype}) for a weight, "
                "expected float32, float16, bfloat16 or MLX's uint32 codes; fp8 weights of other tools are not read: "
                "take a checkpoint in MLX's format",
                code="bytes_undeclared",
            )
