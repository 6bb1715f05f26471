"""A short name for a model's numbers: the same for the same config and weights, another for another quantisation."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from coterie.arrays import Array, as_numpy, dtype_name, octets
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
            digest.update(f"\n{path} {dtype_name(array)} {tuple(array.shape)}\n".encode())
            for block in _blocks(array):
                digest.update(block)
    return digest.hexdigest()


def _arrays(weight: Any) -> list[Array]:
    parts = (weight.codes, weight.scales, weight.biases) if isinstance(weight, Packed) else (weight,)
    return [part for part in parts if part is not None]


def _blocks(array: Array) -> Iterator[bytes]:
    """Of an array on a GPU only these bytes come to the host."""
    data = octets(array)
    if len(data) <= _BLOCK * _N_BLOCKS:
        yield as_numpy(data).tobytes()
        return
    for begin in np.linspace(0, len(data) - _BLOCK, _N_BLOCKS).astype(int).tolist():
        yield as_numpy(data[begin : begin + _BLOCK]).tobytes()
