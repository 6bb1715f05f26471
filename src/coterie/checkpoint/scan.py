"""Looking for NaN and infinity in stored values, and for scales that no quantiser writes, before they reach a kernel.

Every floating tensor is read once through read calls (so a bad sector is an error, not a signal), in pieces that fit
a cache. Packed codes are skipped: any code is a number. Byte scales are judged by their own format, which the ratio of
words to groups gives: E8M0 255 and E4M3 0x7F and 0xFF are not numbers.

All scales of a matrix zero is refused: quantisers write it for no matrix but zero, and a hole in a download looks just
like it. Denormal scales are refused in float32 and bfloat16, whose lower range no quantiser comes near; in float16 they
are the normal result for a group of zeros and pass.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from coterie.arrays import bfloat16
from coterie.checkpoint import files
from coterie.checkpoint.files import opened, reading, show
from coterie.checkpoint.header import TensorInfo
from coterie.checkpoint.safetensors import SafetensorsFile, changed
from coterie.errors import CheckpointError

Infos = Mapping[str, TensorInfo]

CHUNK = 4 << 20

EXPONENTS: dict[np.dtype[Any], tuple[np.dtype[Any], int, int]] = {
    np.dtype(np.float64): (np.dtype(np.uint64), (1 << 63) - 1, 0x7FF << 52),
    np.dtype(np.float32): (np.dtype(np.uint32), (1 << 31) - 1, 0xFF << 23),
    np.dtype(np.float16): (np.dtype(np.uint16), (1 << 15) - 1, 0x1F << 10),
    bfloat16: (np.dtype(np.uint16), (1 << 15) - 1, 0xFF << 7),
}
"""Float dtype: unsigned dtype of its bits, mask of everything but the sign, and the bits of infinity."""

SMALLEST_NORMAL = {np.dtype(np.float32): 1 << 23, bfloat16: 1 << 7}
"""Float dtypes whose scales may not be denormal: the bits of their smallest normal number."""


def scan_file(file: SafetensorsFile, infos: Infos) -> None:
    """`CheckpointError` naming the first tensor of `file` with a value that is not finite, or with impossible scales.

    `infos` are the tensors of the whole checkpoint: codes may lie in another file than their scales.
    """
    with opened(file.path) as handle:
        for info in file.tensors.values():
            if info.dtype not in EXPONENTS and not is_byte_scale(info):
                continue
            largest = 0
            for begin in range(0, info.nbytes, CHUNK):
                size = min(CHUNK, info.nbytes - begin)
                with reading(file.path):
                    data = files.disk.read_at(handle, info.begin + begin, size)
                if len(data) != size:
                    raise changed(file.path)
                largest = max(largest, _check(file, info, data, begin, infos))
            if info.nbytes and largest == 0 and info.name.endswith(".scales"):
                found = "scales that are all zero"
                raise _refused(file, info, "zero_scales", found, "scales of a quantiser: the file may have a hole")


def is_byte_scale(info: TensorInfo) -> bool:
    """Does the tensor hold scales of a byte each?"""
    return info.dtype == np.uint8 and info.name.endswith(".scales")


def _check(file: SafetensorsFile, info: TensorInfo, data: bytes, begin: int, infos: Infos) -> int:
    """The largest magnitude in this piece, as bits; raises for bits that are not a number."""
    if info.dtype == np.uint8:
        bits = np.frombuffer(data, np.uint8)
        bad = bits == 255 if is_e8m0(info, infos) else (bits & 127) == 127
        limit = 256
    else:
        unsigned, mask, limit = EXPONENTS[info.dtype]
        bits = np.frombuffer(data, unsigned) & unsigned.type(mask)
        bad = bits >= limit if int(bits.max()) >= limit else None
    if bad is not None and bad.any():
        first = begin // info.dtype.itemsize + int(bad.argmax())
        at = [int(i) for i in np.unravel_index(first, info.shape)] if info.shape else []
        found = f"NaN or infinity at {at} ({int(bad.sum())} in this part)"
        raise _refused(file, info, "not_finite", found, "finite numbers")
    floor = SMALLEST_NORMAL.get(info.dtype)
    if floor is not None and info.name.endswith(".scales") and bool(((bits > 0) & (bits < floor)).any()):
        raise _refused(file, info, "denormal_scales", "denormal scales", "scales of at least 1e-37")
    return int(bits.max())


def is_e8m0(info: TensorInfo, infos: Infos) -> bool:
    """nvfp4, the one format with E4M3 scales, has 2 words a group; mxfp4 has 4 and mxfp8 has 8."""
    codes = infos.get(info.name.removesuffix("scales") + "weight")
    if codes is None or not info.shape or not codes.shape or not info.shape[-1]:
        return True
    return codes.shape[-1] != 2 * info.shape[-1]


def _refused(file: SafetensorsFile, info: TensorInfo, code: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: tensor {show(info.name, 200)}: found {found}, expected {expected}; "
        "fetch or write the file again, or pass scan=False to load it as it is",
        code=code,
    )
