"""`Packed`: a quantised matrix, or a stack of them, exactly as MLX stores it."""

from dataclasses import dataclass, field
from typing import Any

from coterie.arrays import Array, Kind, common_kind, dtype_name
from coterie.errors import ArgumentError
from coterie.formats.spec import Format


@dataclass(frozen=True, slots=True)
class Packed:
    """Codes, scales and biases of a quantised [..., N, K] matrix; checked once, when it is made.

    codes: uint32 [..., N, K * bits / 32].  scales: [..., N, K / group_size]; f32, f16 or bf16 for affine, else uint8.
    biases: like scales for affine, None for every other mode. All three are arrays of one kind. `bits` and `group_size`
    of None mean the mode's default. `derived` is where a back end remembers what it made of the matrix.
    """

    codes: Array
    scales: Array
    biases: Array | None = None
    bits: int | None = None
    group_size: int | None = None
    mode: str = "affine"
    format: Format = field(init=False, compare=False, repr=False)
    kind: Kind = field(init=False, compare=False, repr=False)
    derived: dict[str, Any] = field(init=False, compare=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        fmt = Format.resolve(self.mode, self.bits, self.group_size)
        object.__setattr__(self, "format", fmt)
        object.__setattr__(self, "bits", fmt.bits)
        object.__setattr__(self, "group_size", fmt.group_size)
        object.__setattr__(self, "kind", common_kind(codes=self.codes, scales=self.scales, biases=self.biases))
        _check_dtypes(self, fmt)
        _check_shapes(self, fmt)

    @property
    def shape(self) -> tuple[int, ...]:
        """The logical shape [..., N, K] of the matrix that is stored."""
        return (*self.codes.shape[:-1], self.scales.shape[-1] * self.format.group_size)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and biases together."""
        return sum(int(part.nbytes) for part in (self.codes, self.scales, self.biases) if part is not None)


def _check_dtypes(packed: Packed, fmt: Format) -> None:
    if dtype_name(packed.codes) != "uint32":
        raise ArgumentError(f"codes are {dtype_name(packed.codes)}, expected uint32", code="packed_dtype")
    if dtype_name(packed.scales) not in fmt.scale_dtypes:
        raise ArgumentError(
            f"scales are {dtype_name(packed.scales)}, expected {' or '.join(fmt.scale_dtypes)} for {fmt.mode}",
            code="packed_dtype",
        )
    if fmt.mode == "affine":
        if packed.biases is None:
            raise ArgumentError("biases are missing; affine needs one for each scale", code="packed_biases")
        if dtype_name(packed.biases) != dtype_name(packed.scales):
            raise ArgumentError(
                f"biases are {dtype_name(packed.biases)} and scales {dtype_name(packed.scales)}; expected one dtype",
                code="packed_dtype",
            )
    elif packed.biases is not None:
        raise ArgumentError(f"biases were given; {fmt.mode} has none", code="packed_biases")


def _check_shapes(packed: Packed, fmt: Format) -> None:
    codes, scales = tuple(packed.codes.shape), tuple(packed.scales.shape)
    if len(codes) < 2 or len(codes) != len(scales) or codes[:-1] != scales[:-1]:
        raise ArgumentError(
            f"codes are {list(codes)} and scales {list(scales)}; expected [..., N, words] and [..., N, groups] "
            "with equal leading axes",
            code="packed_shape",
        )
    expected = fmt.words(scales[-1] * fmt.group_size)
    if codes[-1] != expected:
        raise ArgumentError(
            f"codes have {codes[-1]} words a row and scales {scales[-1]} groups; {fmt} expects {expected} words for "
            "that many groups",
            code="packed_shape",
        )
    if packed.biases is not None and tuple(packed.biases.shape) != scales:
        raise ArgumentError(
            f"biases are {list(packed.biases.shape)}, expected the shape of scales {list(scales)}", code="packed_shape"
        )
