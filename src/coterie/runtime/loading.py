"""`load`: from a folder or an id of the hub to a `Model`."""

import contextlib
import importlib.util
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coterie.checkpoint import local_folder, open_checkpoint, read_config
from coterie.errors import ArgumentError, BackendUnavailableError, MemoryShortage
from coterie.models.architecture import Architecture
from coterie.models.decoder import Decoder
from coterie.models.description import Description
from coterie.models.description import describe as describe_checkpoint
from coterie.models.families import family_of
from coterie.models.weights import read_weights
from coterie.ops import dispatch
from coterie.runtime.chat_template import read_chat_template
from coterie.runtime.memory import available_memory, shortage
from coterie.runtime.model import Model
from coterie.runtime.tokenizer import read_tokenizer

_PRECISIONS = ("default", "exact")


Progress = Callable[[int, int], None]
"""Called with the bytes of the weights that are done and the bytes in all."""

_DEVICES = ("cpu", "mlx", "cuda")


def load(
    path_or_repo: str | Path | None = None,
    *,
    device: str = "auto",
    precision: str = "default",
    progress: Progress | None = None,
) -> Model:
    """Load a model in MLX's format: a folder, an id of the hub ("owner/name"), or None for the bundled model.

    Every byte of the weights is checked once; they then stay in the mapped files. device is "cpu"; "cuda", an NVIDIA
    GPU, to which the weights are copied; "mlx", which copies them into MLX's memory and computes on MLX's default
    device; or "auto", "cuda" where there is such a GPU that PyTorch and Triton can use, else "cpu". One that is not
    there is a `BackendUnavailableError`; weights for which the GPU has no room are a `CapacityError`. `progress` is
    told how much has been copied.

    precision, on the CPU, is "default", activations of 16 bits where weights of small integers meet them, or "exact",
    all in f32; on a GPU "default" is activations, keys and values in bf16, and "exact" f32. `CheckpointError`,
    `ConfigError` and `UnsupportedError` say what is wrong with a checkpoint. Weights that do not fit into the available
    memory are a warning, `MemoryShortage`, that says what a token then costs.
    """
    started = time.perf_counter()
    backend = _decoder_backend(device, precision)
    folder = local_folder(_location(path_or_repo))
    _warn_of_shortage(folder)
    with open_checkpoint(folder) as checkpoint:
        family = family_of(checkpoint.config)
        architecture = family.architecture(checkpoint.config)
        weights = read_weights(architecture, checkpoint, family.name_map(checkpoint.config).drops)
        tokenizer = read_tokenizer(checkpoint, architecture.vocab_size)
        description = describe_checkpoint(architecture, checkpoint)
        decoder = Decoder(architecture, backend.adopt(weights, progress), backend)
        chat_template = read_chat_template(checkpoint)
        seconds = time.perf_counter() - started
        return Model(decoder, tokenizer, checkpoint.config, description, chat_template, load_seconds=seconds)


def describe(path_or_repo: str | Path | None = None) -> Description:
    """What a checkpoint holds, from its headers and its config alone; the same errors as `load`."""
    with open_checkpoint(_location(path_or_repo), scan=False) as checkpoint:
        return describe_checkpoint(family_of(checkpoint.config).architecture(checkpoint.config), checkpoint)


def read_architecture(path_or_repo: str | Path | None = None) -> Architecture:
    """The decoder that a checkpoint's config asks for; the same errors as `load`."""
    config = read_config(local_folder(_location(path_or_repo)))
    return family_of(config).architecture(config)


def _warn_of_shortage(folder: Path) -> None:
    """`MemoryShortage` before the first byte of the weights is read; their headers are read only if files are large."""
    available = available_memory()
    try:
        n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    except OSError:
        # Whatever is wrong with the files, reading them says it by name.
        return
    if available is None or n_bytes <= available:
        return
    told = shortage(describe(folder), available)
    if told is not None:
        warnings.warn(told, MemoryShortage, stacklevel=3)


def _location(path_or_repo: str | Path | None) -> str | Path:
    if path_or_repo is not None:
        return path_or_repo
    from coterie import bundled

    return bundled.path()


def _decoder_backend(device: str, precision: str) -> Any:
    if precision not in _PRECISIONS:
        raise ArgumentError(f"precision is {precision!r}, expected one of {', '.join(_PRECISIONS)}", code="precision")
    if device == "auto":
        return _fastest(precision)
    if device not in _DEVICES:
        raise ArgumentError(f"device is {device!r}, expected 'auto', 'cpu', 'cuda' or 'mlx'", code="device")
    return dispatch.decoder(device, precision)


def _fastest(precision: str) -> Any:
    """A GPU of NVIDIA's if there is one that can be used; nothing is imported to find out that there is none."""
    if has_nvidia_gpu() and all(importlib.util.find_spec(name) for name in ("torch", "triton")):
        with contextlib.suppress(BackendUnavailableError):
            return dispatch.decoder("cuda", precision)
    return dispatch.decoder("cpu", precision)


def has_nvidia_gpu() -> bool:
    """Whether NVIDIA's driver is there and has made a device for a GPU."""
    if sys.platform == "win32":
        return shutil.which("nvidia-smi") is not None
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
