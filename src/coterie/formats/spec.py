"""The quantisation formats of MLX by name: mode, bits a code, codes a group.

    mode     bits              group          scale           value of code q
    affine   1 2 3 4 5 6 8     32 64 128      f32 f16 bf16    scale * q + bias
    mxfp4    4                 32             uint8 (E8M0)    scale * E2M1(q)
    mxfp8    8                 32             uint8 (E8M0)    scale * E4M3(q)
    nvfp4    4                 16             uint8 (E4M3)    scale * E2M1(q)

Groups run along the last axis. Codes of a row form one little-endian bit stream, least significant bit first, cut into
little-endian 32-bit words; a code may straddle two words, a group never does. MX formats: OCP Microscaling Formats
v1.0.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from coterie.errors import ArgumentError

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]

MODES: tuple[Mode, ...] = get_args(Mode)
AFFINE_BITS = (1, 2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (32, 64, 128)
_FIXED: dict[str, tuple[int, int]] = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


@dataclass(frozen=True, slots=True)
class Format:
    """One quantisation format; build it with `Format.resolve`, which checks."""

    mode: Mode
    bits: int
    group_size: int

    @classmethod
    def resolve(cls, mode: str = "affine", bits: int | None = None, group_size: int | None = None) -> "Format":
        """Fill in MLX's defaults (affine: 4 bits, group 64) and refuse what no format has, by name."""
        if mode not in MODES:
            raise ArgumentError(f"mode {mode!r} is not known; expected one of {', '.join(MODES)}", code="format")
        for name, value in (("bits", bits), ("group_size", group_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ArgumentError(f"{name} is {value!r}, expected an integer or None", code="format")
        if mode == "affine":
            bits, group_size = bits if bits is not None else 4, group_size if group_size is not None else 64
            _expect(mode, "bits", bits, AFFINE_BITS)
            _expect(mode, "group_size", group_size, AFFINE_GROUP_SIZES)
            return cls("affine", bits, group_size)
        fixed_bits, fixed_group = _FIXED[mode]
        _expect(mode, "bits", fixed_bits if bits is None else bits, (fixed_bits,))
        _expect(mode, "group_size", fixed_group if group_size is None else group_size, (fixed_group,))
        return cls(mode, fixed_bits, fixed_group)

    def words(self, n_codes: int) -> int:
        """32-bit words that `n_codes` codes of one row fill; `n_codes` is a multiple of the group size."""
        return n_codes * self.bits // 32

    def n_groups(self, n_codes: int) -> int:
        """Groups, and so scales, in a row of `n_codes` codes."""
        return n_codes // self.group_size

    @property
    def scale_dtypes(self) -> tuple[str, ...]:
        """The dtype names that scales (and, for affine, biases) may have."""
        return ("float32", "float16", "bfloat16") if self.mode == "affine" else ("uint8",)

    def __str__(self) -> str:
        return f"{self.mode} {self.bits} bits, group {self.group_size}" if self.mode == "affine" else self.mode


def _expect(mode: str, name: str, value: int, allowed: tuple[int, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(
            f"{mode} with {name} {value} does not exist; expected {' or '.join(map(str, allowed))}", code="format"
        )
