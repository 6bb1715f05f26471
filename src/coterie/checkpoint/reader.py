"""A checkpoint, open: its config, its tensors as mapped read-only arrays, and its matrices by their own formats.

In: a folder (or an id of the hub, see `hub.py`). Out: a `Checkpoint`. Refused: what `header.py`, `folder.py`,
`config.py`, `quantization.py` and `scan.py` name. Every refusal leaves no file open.
"""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from coterie.checkpoint import files, folder
from coterie.checkpoint.config import CONFIG, read_config
from coterie.checkpoint.files import show
from coterie.checkpoint.hub import local_folder
from coterie.checkpoint.quantization import rules
from coterie.checkpoint.safetensors import SafetensorsFile
from coterie.checkpoint.scan import scan_file
from coterie.checkpoint.stored import StoredTensors
from coterie.errors import CheckpointError, ConfigError

MAX_MEMBER = 256_000_000


def open_checkpoint(path_or_repo: str | Path, *, scan: bool = True, published: bool = False) -> "Checkpoint":
    """Open the checkpoint in a folder, or fetch it from the hub by its id ("owner/name") first.

    scan: read every float and every scale once and refuse NaN, infinity and impossible scales (`scan.py`).
    published: a source of a conversion, whose experts may lie in mxfp4 as gpt-oss was published.
    """
    return Checkpoint(local_folder(path_or_repo), scan=scan, published=published)


class Checkpoint(StoredTensors):
    """`config` is the raw object of config.json; the tensors and their rules are those of `StoredTensors`.

    Arrays that were handed out stay valid after `close`.
    """

    def __init__(self, path: Path, *, scan: bool = True, published: bool = False) -> None:
        self.config: dict[str, Any] = read_config(path, published=published)
        super().__init__(path, rules(self.config, str(path / CONFIG), published=published))
        self._files: dict[str, SafetensorsFile] = {}
        with ExitStack() as on_error:
            on_error.callback(self.close)
            self._open_files()
            _check_declared(self)
            if scan:
                for file in self._files.values():
                    scan_file(file, self.infos)
            self.check_unchanged()
            on_error.pop_all()

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

    def _open_files(self) -> None:
        names, index = folder.weight_files(self.path)
        for name in names:
            file = self._files[name] = SafetensorsFile(folder.member(self.path, name))
            self.add(file)
        if index is not None:
            self._check_index(index)

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
