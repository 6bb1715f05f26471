"""The decoder's verbs together, and the pieces of a layer that this back end has in few launches."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from coterie.arrays import as_numpy
from coterie.backends import cuda
from coterie.backends.cuda.arranged import Arranged, Wishes
from coterie.backends.cuda.decoder import attention, elementwise, head_matrices, latent, weights
from coterie.backends.cuda.decoder.projected import projected_rows
from coterie.backends.cuda.decoder.rows import DeviceRows, RowMaker, StoreTraits
from coterie.backends.cuda.decoder.steps import Compute, DeviceSteps, Records
from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.launch import INTERPRETED
from coterie.backends.cuda.layer import SlotOutputs, run_dense, run_slots
from coterie.backends.cuda.linear import linears
from coterie.backends.cuda.stacks import Weight
from coterie.ops import RouteSpec, Routing

_EXACT_PARTS = 2
"""Numbers of bf16 that an activation is the sum of where it is not rounded to one: 16 of the 24 digits of f32."""

_WHOLE_PARTS = 4
"""Numbers of bf16 that hold all digits of f32: three would do, and kernels want a power of two."""

_CHUNK = 4096
"""Tokens of a prompt that pass together: so many that each expert has rows enough for the matrix units."""


class Verbs:
    """precision: "default" rounds what matrices and attention multiply to bf16; "exact" computes in f32."""

    clip = staticmethod(elementwise.clip)
    embed = staticmethod(weights.embed)
    glu = staticmethod(cuda.glu)
    rms_norm = staticmethod(elementwise.rms_norm)
    rotary = staticmethod(elementwise.rotary)
    softcap = staticmethod(elementwise.softcap)

    _alone = False

    def __init__(self, precision: str = "default") -> None:
        self.precision = precision
        self.device = torch.device("cpu" if INTERPRETED.value else "cuda")
        self.dtype = torch.float32 if precision == "exact" else torch.bfloat16
        self.pass_rows = RowMaker(self.device, self.dtype)
        self.store_traits = StoreTraits(_CHUNK, self.dtype.itemsize, lambda: weights.free_memory(self.device))
        self._records, self._wishes = Records(), Wishes()
        self._by_head: dict[int, tuple[Any, torch.Tensor]] = {}

    @property
    def row_by_row(self) -> "Verbs":
        twin = object.__new__(RowByRow)
        twin.__dict__.update(self.__dict__)
        return twin

    def adopt(self, stored: Mapping[str, Any], progress: weights.Progress | None = None) -> dict[str, Any]:
        return weights.adopt(stored, self.device, progress)

    def used_memory(self) -> int:
        """Bytes that tensors take on the device."""
        return int(torch.cuda.memory_allocated(self.device)) if self.device.type == "cuda" else 0

    def linear(self, x: torch.Tensor | Arranged, weight: Weight, *, exact: bool = False) -> torch.Tensor:
        return self.linears(x, (weight,), (None,), exact=exact)[0]

    @within_memory
    def linears(
        self, x: torch.Tensor | Arranged, matrices: Sequence[Weight], biases: Sequence[torch.Tensor | None], *,
        exact: bool = False,
    ) -> list[torch.Tensor]:  # fmt: skip
        return linears(x, matrices, biases, parts=self._parts(exact), alone=self._alone)

    @within_memory
    def projections(
        self, x: torch.Tensor | Arranged, matrices: Sequence[Weight], biases: Sequence[torch.Tensor | None], *,
        exact: bool = False,
    ) -> list[torch.Tensor]:  # fmt: skip
        """`linears` whose results only this layer reads."""
        dtype = torch.float32 if exact else self._passing_dtype(len(x))
        return linears(x, matrices, biases, parts=self._parts(exact), alone=self._alone, dtype=dtype)

    @within_memory
    def attend_rows(
        self, queries: torch.Tensor, new: tuple[torch.Tensor, torch.Tensor] | None, spec: Any, vectors: Any,
        rows: DeviceRows, layer: int, eps: float,
    ) -> Arranged:  # fmt: skip
        projected = projected_rows(queries, new, spec, vectors, eps, self.dtype)
        return attention.attend_rows(projected, vectors.sinks, rows, layer, self._wishes, alone=self._alone)

    @within_memory
    def attend_latent_rows(
        self, queries: torch.Tensor, turned: torch.Tensor, latents: torch.Tensor, keys: torch.Tensor, matrices: Any,
        rows: DeviceRows, layer: int, scale: float,
    ) -> torch.Tensor:  # fmt: skip
        key_up, value_up = self._dense(matrices.key, not matrices.key_transposed), self._dense(matrices.value, False)
        return latent.attend_latent_rows(
            queries, turned, latents, keys, key_up, value_up, rows, layer, scale, self.dtype, alone=self._alone
        )

    def route(self, logits: torch.Tensor, spec: RouteSpec) -> Routing:
        ids, chosen = cuda.route(logits, spec)
        return Routing(ids, chosen, logits.shape[-1])

    @within_memory
    def moe(self, x: torch.Tensor | Arranged, routing: Routing, experts: Any) -> SlotOutputs:
        """The outputs of the experts, which `add_norms` weighs and sums."""
        return self._moe(x, routing, experts, known=False)

    @within_memory
    def moe_behind(self, x: torch.Tensor | Arranged, routing: Routing, experts: Any) -> SlotOutputs:
        """`moe`, where something was launched since the routing was."""
        return self._moe(x, routing, experts, known=True)

    def _moe(self, x: torch.Tensor | Arranged, routing: Routing, experts: Any, *, known: bool) -> SlotOutputs:
        dtype = self._passing_dtype(len(x))
        return run_slots(x, routing.ids, routing.weights, experts, self._parts(), dtype, alone=self._alone, known=known)

    @within_memory
    def mlp(self, x: torch.Tensor | Arranged, gate: Weight, up: Weight, down: Weight, activation: str) -> torch.Tensor:
        return run_dense(x, gate, up, down, activation, self._parts(), alone=self._alone)

    @within_memory
    def add_norms(
        self, h: torch.Tensor, branches: Sequence[tuple[Any, torch.Tensor | None]], after: torch.Tensor | None,
        scalar: torch.Tensor | None, befores: Sequence[torch.Tensor], eps: float,
    ) -> tuple[torch.Tensor, list[Arranged]]:  # fmt: skip
        return elementwise.add_norms(h, branches, after, scalar, befores, eps, self._wishes)

    def steps(self, compute: Compute, caches: Sequence[Any], frequencies: Mapping[Any, np.ndarray]) -> DeviceSteps:
        return DeviceSteps(compute, caches, frequencies, self.pass_rows, self._records, self._alone)

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    def to_numpy(self, x: torch.Tensor) -> np.ndarray:
        return as_numpy(x)

    def _passing_dtype(self, n_rows: int) -> torch.dtype:
        """The dtype of what one launch of a layer leaves for the next."""
        is_wide = self.precision == "exact" or self._alone or n_rows <= elementwise.FEW
        return torch.float32 if is_wide else torch.bfloat16

    def _parts(self, exact: bool = False) -> int:
        if self.precision == "exact":
            return _WHOLE_PARTS if exact else _EXACT_PARTS
        return _EXACT_PARTS if exact else 1

    def _dense(self, matrix: Weight, transposed: bool) -> torch.Tensor:
        """Matrices by head in f32, the other way round if so, made once."""
        kept = self._by_head.get(id(matrix))
        if kept is None:
            kept = self._by_head[id(matrix)] = (matrix, head_matrices.by_head(matrix, transposed=transposed))
        return kept[1]


class RowByRow(Verbs):
    """Rows whose bits do not depend on the other rows."""

    _alone = True

    @property
    def row_by_row(self) -> Verbs:
        return self
