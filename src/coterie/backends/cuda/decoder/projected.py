"""Projections of rows, before they are heads."""

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl

from coterie.backends.cuda.decoder.elementwise import rms_norm
from coterie.backends.cuda.sizes import next_power_of_2

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


@dataclass(frozen=True, slots=True)
class Projected:
    """Projections of rows, [T, heads * D] each, f32 or rounded to bf16, and what makes heads of them; `dtype` is that
    of the stores.

    keys and values of None: the stores have them already.
    """

    queries: torch.Tensor
    keys: torch.Tensor | None
    values: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    spec: Any
    eps: float
    dtype: torch.dtype

    @property
    def pointers(self) -> tuple[Any, ...]:
        """Queries, keys and values; for those that the stores have already queries stand in, which nobody reads."""
        return self.queries, *(self.queries if x is None else x for x in (self.keys, self.values))

    @property
    def numbers(self) -> tuple[Any, ...]:
        """Strides, eps and limit, as kernels take them."""
        return *(x.stride(0) for x in self.pointers), float(self.eps), float(self.spec.clip or 0.0)

    @property
    def options(self) -> dict[str, Any]:
        """What kernels are compiled for."""
        spec = self.spec
        return {
            "N_HEADS": spec.n_heads,
            "D": spec.head_dim,
            "N_PAIRS": len(spec.rope.frequencies),
            "INTERLEAVED": spec.rope.interleaved,
            "Q_NORM": self.query_norm is not None,
            "K_NORM": self.key_norm is not None,
            "V_NORM": spec.normalize_values,
            "HAS_LIMIT": spec.clip is not None,
            "DTYPE": TRITON_DTYPES[self.dtype],
            "BLOCK_D": next_power_of_2(spec.head_dim),
        }


def projected_rows(
    queries: torch.Tensor, new: tuple[torch.Tensor, torch.Tensor] | None, spec: Any, vectors: Any, eps: float,
    dtype: torch.dtype,
) -> Projected:  # fmt: skip
    """A norm over all heads needs them together, before any of them is turned: it is taken here."""
    query_norm, key_norm = vectors.query_norm, vectors.key_norm
    keys, values = (None, None) if new is None else new
    if spec.norm_span == "projection":
        queries = queries if query_norm is None else rms_norm(queries, query_norm, eps)
        keys = keys if keys is None or key_norm is None else rms_norm(keys, key_norm, eps)
        query_norm = key_norm = None
    return Projected(queries, keys, values, query_norm, key_norm, spec, eps, dtype)
