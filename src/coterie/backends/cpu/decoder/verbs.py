"""The verbs together: functions of this room, and the CPU back end's own where they compute with weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.backends import cpu
from coterie.backends.cpu.decoder import attention, branches, elementwise, heads, latent, matrices, residual
from coterie.backends.cpu.decoder.frames import Frames
from coterie.backends.cpu.decoder.matrices import Weight
from coterie.backends.cpu.decoder.row_by_row import parts_of, rows_at_a_time
from coterie.backends.cpu.decoder.steps import Compute, PlayedSteps, Records
from coterie.ops import RouteSpec, Routing


@dataclass(frozen=True, slots=True)
class Verbs:
    """precision: of products with weights, as in `coterie.moe`; everything else is in f32. frames: what is remembered
    of calls. records: recorded steps that nobody uses.
    """

    precision: str = "default"
    frames: Frames = field(default_factory=Frames, compare=False, repr=False)
    records: Records = field(default_factory=Records, compare=False, repr=False)

    adopt = staticmethod(matrices.adopt)
    attend = staticmethod(attention.attend)
    attend_latent = staticmethod(latent.attend_latent)
    clip = staticmethod(elementwise.clip)
    embed = staticmethod(matrices.embed)
    glu = staticmethod(cpu.glu)
    join = staticmethod(matrices.join)
    rms_norm = staticmethod(elementwise.rms_norm)
    rotary = staticmethod(elementwise.rotary)
    softcap = staticmethod(elementwise.softcap)

    @property
    def row_by_row(self) -> "Verbs":
        return RowByRow(self.precision, self.frames, self.records)

    def linear(self, x: np.ndarray, weight: Weight, *, exact: bool = False) -> np.ndarray:
        return self.linears(x, (weight,), (None,), exact=exact)[0]

    def linears(
        self, x: np.ndarray, weights: Sequence[Weight], biases: Sequence[np.ndarray | None], *, exact: bool = False
    ) -> list[np.ndarray]:
        return matrices.linears(x, weights, biases, "exact" if exact else self.precision)

    def route(self, logits: np.ndarray, spec: RouteSpec) -> Routing:
        ids, weights = cpu.route(logits, spec)
        return Routing(ids, weights, logits.shape[-1])

    def moe(self, x: np.ndarray, routing: Routing, experts: Any) -> np.ndarray:
        return cpu.moe(x, routing, experts.native, self.precision)

    def attend_rows(self, *arguments: Any) -> np.ndarray:
        return heads.attend_rows(self.frames, *arguments)

    def add_norms(self, *arguments: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        return residual.add_norms(self.frames, *arguments)

    def mlp(self, x: np.ndarray, gate: Weight, up: Weight, down: Weight, activation: str) -> np.ndarray:
        if self._is_step(x):
            return branches.mlp(self.frames, x, gate, up, down, activation, self.precision)
        gate_x, up_x = self.linears(x, (gate, up), (None, None))
        return self.linear(self.glu(gate_x, up_x, activation), down)

    def routed_experts(
        self, x: np.ndarray, seen: np.ndarray, router: Weight, bias: np.ndarray | None, spec: RouteSpec, experts: Any
    ) -> np.ndarray:
        if self._is_step(x):
            return branches.routed_experts(self.frames, x, seen, router, bias, spec, experts.native, self.precision)
        logits = self.linears(seen, (router,), (bias,), exact=True)[0]
        return self.moe(x, self.route(logits, spec), experts)

    def _is_step(self, x: np.ndarray) -> bool:
        """Whether a branch of a layer takes so few rows in one call."""
        return len(x) <= branches.MOST_ROWS

    def steps(self, compute: Compute, caches: Sequence[Any], frequencies: Mapping[Any, np.ndarray]) -> PlayedSteps:
        return PlayedSteps(compute, caches, frequencies, self.records)

    def to_numpy(self, x: np.ndarray) -> np.ndarray:
        return x


@dataclass(frozen=True, slots=True)
class RowByRow(Verbs):
    """Rows whose bits do not depend on the other rows; verbs that are not here treat them one by one in any case."""

    @property
    def row_by_row(self) -> Verbs:
        return self

    def _is_step(self, x: np.ndarray) -> bool:
        return len(x) == 1

    def linears(
        self, x: np.ndarray, weights: Sequence[Weight], biases: Sequence[np.ndarray | None], *, exact: bool = False
    ) -> list[np.ndarray]:
        step = rows_at_a_time(x.shape[-1], "exact" if exact else self.precision)
        parts = [
            Verbs.linears(self, x[begin : begin + step], weights, biases, exact=exact)
            for begin in range(0, len(x), step)
        ]
        return [self.join(products) for products in zip(*parts, strict=True)]

    def moe(self, x: np.ndarray, routing: Routing, experts: Any) -> np.ndarray:
        parts = parts_of(routing.ids, experts.n_experts, rows_at_a_time(x.shape[-1], self.precision))
        if len(parts) == 1:
            return Verbs.moe(self, x, routing, experts)
        out = np.empty_like(x)
        for rows in parts:
            part = Routing(routing.ids[rows], routing.weights[rows], routing.n_experts)
            out[rows] = Verbs.moe(self, x[rows], part, experts)
        return out
