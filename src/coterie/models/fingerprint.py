"""A short name for a model's numbers: the same for the same config and weights, another for another quantisation."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from coterie.arrays import as_numpy
from coterie.formats import Packed

_BLOCK = 4096
_N_BLOCKS = 16
"""Of an array that is longer than so many blocks, this many are read, at even distances, the first and last included:
a model larger than memory is told apart in a moment, and one whose every matrix was touched cannot hide it."""


def fingerprint(config: Mapping[str, Any], weights: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over the config, and over names, shapes, dtypes and a sample of the bytes of all weights.

    It tells models apart; it is no seal: an edit that misses every sampled block leaves it as it is.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in sorted(weights):
        for array in _arrays(weights[path]):
            digest.update(f"\n{path} {array.dtype} {array.shape}\n".encode())
            for block in _blocks(array):
                digest.update(block)
    return digest.hexdigest()


def _arrays(weight: Any) -> list[np.ndarray]:
    parts = (weight.codes, weight.scales, weight.biases) if isinstance(weight, Packed) else (weight,)
    return [as_numpy(part) for part in parts if part is not None]


def _blocks(array: np.ndarray) -> Iterator[bytes]:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if data.size <= _BLOCK * _N_BLOCKS:
        yield data.tobytes()
        return
    for begin in np.linspace(0, data.size - _BLOCK, _N_BLOCKS).astype(int):
        yield data[begin : begin + _BLOCK].tobytes()
