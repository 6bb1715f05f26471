"""Random layers, made on the device; what makes their numbers is said in `coterie.bench.weights`."""

from dataclasses import dataclass
from typing import TypeAlias

import torch

from coterie.bench.shapes import Shape
from coterie.bench.weights import SCALE_RANGE, affine_step, bits_a_weight, e8m0_scale, weight_bytes
from coterie.formats import Format, Packed
from coterie.moe import Experts

Matrix: TypeAlias = Packed | torch.Tensor

_AT_ONCE = 1 << 28
"""Random numbers drawn at a time: scales are f32 before they are bf16."""

_OF_CACHE = 8
"""Times the second-level cache that one play touches: so little of it is left then that it does not help."""

_FEWEST, _MOST = 2, 24


class Maker:
    """Draws matrices; the same seed gives the same numbers on the same kind of device."""

    def __init__(self, place: torch.device, seed: int = 0) -> None:
        self.place = place
        self.generator = torch.Generator(place).manual_seed(seed)

    def matrix(self, shape: tuple[int, ...], fmt: Format | None, spread: float | None = None) -> Matrix:
        """A matrix or stack [..., N, K] in `fmt`, bf16 for None, whose weights have a standard deviation near `spread`:
        1 / sqrt(K) if not given.
        """
        n_inputs = shape[-1]
        if fmt is None:
            out = torch.empty(shape, dtype=torch.bfloat16, device=self.place)
            return out.normal_(0, n_inputs**-0.5 if spread is None else spread, generator=self.generator)
        codes = torch.empty((*shape[:-1], fmt.words(n_inputs)), dtype=torch.int32, device=self.place)
        codes.random_(-(1 << 31), 1 << 31, generator=self.generator)
        scales, biases = self._scales((*shape[:-1], fmt.n_groups(n_inputs)), fmt, n_inputs, spread)
        return Packed(codes.view(torch.uint32), scales, biases, fmt.bits, fmt.group_size, fmt.mode)

    def experts(self, shape: Shape, fmt: Format | None) -> Experts:
        """A layer; in bf16 gate and up are one stack, as libraries that multiply in bf16 hold them."""
        e, inner, outer = shape.n_experts, shape.intermediate, shape.hidden
        rows = [inner, inner] if fmt is not None else [2 * inner]
        gate, *up = (self.matrix((e, n, outer), fmt) for n in rows)
        down = self.matrix((e, outer, inner), fmt)
        return Experts(gate, up[0] if up else None, down, shape.activation)

    def numbers(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Normal numbers."""
        return torch.randn(shape, dtype=dtype, device=self.place, generator=self.generator)

    def _scales(
        self, shape: tuple[int, ...], fmt: Format, n_inputs: int, spread: float | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if fmt.mode != "affine":
            scales = torch.empty(shape, dtype=torch.uint8, device=self.place)
            middle = e8m0_scale(n_inputs, spread)
            return scales.random_(middle - 1, middle + 2, generator=self.generator), None
        step, middle_code = affine_step(fmt.bits, n_inputs, spread), ((1 << fmt.bits) - 1) / 2
        scales = torch.empty(shape, dtype=torch.bfloat16, device=self.place)
        for part in scales.view(-1).split(_AT_ONCE):
            magnitude = torch.empty(part.shape, device=self.place)
            magnitude.uniform_(*(step * edge for edge in SCALE_RANGE), generator=self.generator)
            sign = torch.empty(part.shape, dtype=torch.int8, device=self.place)
            part.copy_(magnitude * sign.random_(0, 2, generator=self.generator).mul_(2).sub_(1))
        return scales, scales * -middle_code


@dataclass(frozen=True, slots=True)
class Plan:
    """How many layers stand in memory, and how many of them one play goes through with so many tokens."""

    expert_bytes: int
    n_experts: int
    top_k: int
    budget: int
    cache: int

    @property
    def layer_bytes(self) -> int:
        """Bytes of a layer."""
        return self.n_experts * self.expert_bytes

    def layers(self, n_tokens: int) -> int:
        """As many as touch the cache's bytes many times over; never more than the budget holds."""
        touched = self.n_experts * (1 - (1 - self.top_k / self.n_experts) ** n_tokens) * self.expert_bytes
        wanted = max(_FEWEST, -int(-_OF_CACHE * self.cache // touched))
        return max(1, min(_MOST, wanted, self.budget // self.layer_bytes))


def plan(shape: Shape, fmt: Format | None, budget: int, cache: int) -> Plan:
    """The plan of a shape in a format, within `budget` bytes of weights, beside a cache of so many bytes."""
    bits = 16.0 if fmt is None else bits_a_weight(fmt)
    return Plan(weight_bytes(shape, bits), shape.n_experts, shape.top_k, budget, cache)
