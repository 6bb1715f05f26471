"""What products multiply: rows of activations, and the slots that say which of them an expert has."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True, slots=True)
class Rows:
    """Activations in the order of a stack's codes: bfloat16 [parts, n, K], and their sums over runs of `span`, f32
    [parts, n, K / span]. Not `arranged`, they are in the order of columns, which the kernels of `single` take.
    """

    values: torch.Tensor
    sums: torch.Tensor
    span: int
    arranged: bool = True

    @property
    def parts(self) -> int:
        """How many numbers an activation is the sum of."""
        return int(self.values.shape[0])


@dataclass(frozen=True, slots=True)
class Halves:
    """Activations in the order of a stack's codes: float16 [1, n, K], each row times a power of two; for plain weights
    bfloat16, as they are.

    sizes: f32 [n, 2], what a 1 of a row stands for, and the sum of its activations' magnitudes. Hidden values have the
    first alone; bfloat16 ones have none, and `sizes` is not read.
    """

    values: torch.Tensor
    sizes: torch.Tensor

    @property
    def parts(self) -> int:
        """An activation is one number."""
        return 1


@dataclass(frozen=True, slots=True)
class Slots:
    """Routed rows, slot s of token s // top_k, by expert: order and blocks as `prepare_kernel` makes them.

    kind: "sorted"; "direct", each slot is a block of its own, and `blocks` are the ids; "dense", all meet one matrix.
    """

    n: int
    top_k: int
    kind: str
    order: torch.Tensor
    blocks: torch.Tensor

    @classmethod
    def direct(cls, ids: torch.Tensor, top_k: int) -> "Slots":
        """Slots of ids int32 that are not sorted."""
        return cls(ids.numel(), top_k, "direct", ids, ids)

    @classmethod
    def dense(cls, rows: Rows | Halves) -> "Slots":
        """All rows, for one matrix."""
        return cls(rows.values.shape[1], 1, "dense", rows.values, rows.values)

    def n_blocks(self, rows: int) -> int:
        """Programs that blocks of so many rows need, at most."""
        if self.kind == "dense":
            return -(-self.n // rows)
        return self.n if self.kind == "direct" else len(self.blocks)

    @property
    def per_slot(self) -> "Slots":
        """The same slots for rows that are one for each slot."""
        return replace(self, top_k=1)
