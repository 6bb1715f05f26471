"""One pass over the values of a checkpoint: every float and every byte scale, in pieces that fit a cache.

Codes are left out: any code is a number. Magnitudes are compared as bits without their sign, which order as the numbers
do, so nothing is converted.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from coterie.checkpoint import files
from coterie.checkpoint.files import opened, reading
from coterie.checkpoint.header import TensorInfo
from coterie.checkpoint.safetensors import SafetensorsFile, changed
from coterie.checkpoint.scan import CHUNK, EXPONENTS, SMALLEST_NORMAL, is_byte_scale, is_e8m0

Progress = Callable[[int, int, str], None]
"""Called with bytes that are done, all of them, and the name of the tensor that comes next."""

_MAX_ROWS = 1 << 20


@dataclass(slots=True)
class Statistics:
    """A tensor in figures: how many values are not finite and where the first is, how many scales are denormal.

    largest: the largest finite magnitude. rows: the same for each index of the first axis, None for a vector or where
    there are very many. constant_rows: of byte scales, the indices whose bytes are all equal.
    """

    info: TensorInfo
    n_bad: int = 0
    first_bad: list[int] = field(default_factory=list)
    n_denormal: int = 0
    largest: float = 0.0
    rows: np.ndarray | None = None
    constant_rows: np.ndarray | None = None


Values = dict[str, Statistics]


def read_values(sources: Iterable[SafetensorsFile], progress: Progress | None = None) -> Values:
    """The statistics of every float tensor and every tensor of byte scales, by name.

    `CheckpointError` for a file that cannot be read or changes on the way.
    """
    held = list(sources)
    infos = {name: info for file in held for name, info in file.tensors.items()}
    chosen = {
        file.path: [i for i in file.tensors.values() if i.dtype in EXPONENTS or is_byte_scale(i)] for file in held
    }
    total, done, found = sum(info.nbytes for some in chosen.values() for info in some), 0, {}
    for path, some in chosen.items():
        with opened(path) as handle:
            for info in some:
                if progress is not None:
                    progress(done, total, info.name)
                found[info.name] = _Scan(info, infos).run(handle, path)
                done += info.nbytes
    if progress is not None:
        progress(total, total, "")
    return found


class _Scan:
    """The pass over one tensor."""

    def __init__(self, info: TensorInfo, infos: dict[str, TensorInfo]) -> None:
        self.info = info
        self.found = Statistics(info)
        self.is_byte = info.dtype == np.uint8
        self.is_e8m0 = self.is_byte and is_e8m0(info, infos)
        self.unsigned: np.dtype[Any] = np.dtype(np.uint8) if self.is_byte else EXPONENTS[info.dtype][0]
        self.row = int(np.prod(info.shape[1:])) if len(info.shape) > 1 else 0
        counted = self.row > 0 and info.shape[0] <= _MAX_ROWS
        self.high = np.zeros(info.shape[0], self.unsigned) if counted else None
        self.low = np.full(info.shape[0], 255, np.uint8) if counted and self.is_byte else None
        self.top = 0

    def run(self, handle: BinaryIO, path: Any) -> Statistics:
        """Read it all."""
        for begin in range(0, self.info.nbytes, CHUNK):
            size = min(CHUNK, self.info.nbytes - begin)
            with reading(path):
                data = files.disk.read_at(handle, self.info.begin + begin, size)
            if len(data) != size:
                raise changed(path)
            self._take(np.frombuffer(data, self.unsigned), begin // self.info.dtype.itemsize)
        self.found.largest = float(self._numbers(np.array([self.top], self.unsigned))[0])
        if self.high is not None:
            self.found.rows = self._numbers(self.high)
        if self.low is not None and self.high is not None:
            self.found.constant_rows = np.flatnonzero(self.low == self.high)
        return self.found

    def _take(self, raw: np.ndarray, first: int) -> None:
        bits, bad = self._magnitudes(raw)
        if bad is not None:
            if not self.found.n_bad:
                at = first + int(bad.argmax())
                self.found.first_bad = (
                    [int(i) for i in np.unravel_index(at, self.info.shape)] if self.info.shape else []
                )
            self.found.n_bad += int(bad.sum())
            bits = np.where(bad, 0, bits).astype(self.unsigned)
        floor = SMALLEST_NORMAL.get(self.info.dtype)
        if floor is not None and self.info.name.endswith(".scales"):
            self.found.n_denormal += int(((bits > 0) & (bits < floor)).sum())
        self.top = max(self.top, int(bits.max()))
        if self.high is not None:
            self._by_row(bits, raw, first)

    def _magnitudes(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Bits without their sign, and which of them are not finite numbers; None where all are."""
        if self.is_e8m0:
            bits, bad = raw, raw == 255
        elif self.is_byte:
            bits = raw & np.uint8(127)
            bad = bits == 127
        else:
            unsigned, mask, limit = EXPONENTS[self.info.dtype]
            bits = raw & unsigned.type(mask)
            if int(bits.max()) < limit:
                return bits, None
            bad = bits >= limit
        return bits, bad if bad.any() else None

    def _by_row(self, bits: np.ndarray, raw: np.ndarray, first: int) -> None:
        assert self.high is not None
        rows = np.arange(first // self.row, (first + len(bits) - 1) // self.row + 1)
        starts = np.maximum(rows * self.row - first, 0)
        self.high[rows] = np.maximum(self.high[rows], np.maximum.reduceat(bits, starts))
        if self.low is not None:
            self.low[rows] = np.minimum(self.low[rows], np.minimum.reduceat(raw, starts))

    def _numbers(self, bits: np.ndarray) -> np.ndarray:
        """The magnitudes that the bits stand for, as f64."""
        if self.is_e8m0:
            return np.exp2(bits.astype(np.float64) - 127)
        dtype = ml_dtypes.float8_e4m3fn if self.is_byte else self.info.dtype
        return bits.view(dtype).astype(np.float64)
