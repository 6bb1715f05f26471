"""PyTorch modules whose matrices stay packed as MLX stores them, and run on Coterie's kernels.

Parameters have the names of MLX's files: `weight` (codes), `scales`, `biases` of the quantisation, and `bias`. A module
is made on the meta device for a matrix of a file, and filled by whoever loads the file.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from coterie.arrays import dtype_name
from coterie.formats import Format, Packed
from coterie.integrations.transformers.gradient import forward_only
from coterie.moe import Experts, moe
from coterie.ops import Routing, dequantize, dispatch, quantized_matmul

Stored = Packed | np.ndarray
"""A matrix as the checkpoint has it."""

_PARTS = ("weight", "scales", "biases")


class PackedMatrix(nn.Module):  # type: ignore[misc]
    """A matrix [..., N, K], or a stack of them: packed, or plain in the model's dtype where it is not quantised."""

    def __init__(self, stored: Stored, dtype: Any, bias: tuple[int, ...] | None = None) -> None:
        """`stored`: what the file has; `dtype`: of plain matrices and biases; `bias`: the shape of one, or None."""
        super().__init__()
        self.register_parameter("bias", None if bias is None else _parameter(bias, dtype))
        self.hold(stored, dtype)

    def hold(self, stored: Stored, dtype: Any) -> None:
        """Make the parameters for `stored`, without values."""
        self.format: Format | None = stored.format if isinstance(stored, Packed) else None
        self.remembered: Packed | None = None
        if not isinstance(stored, Packed):
            self.register_parameter("weight", _parameter(stored.shape, dtype))
            return
        for name, part in zip(_PARTS, (stored.codes, stored.scales, stored.biases), strict=True):
            made = None if part is None else _parameter(part.shape, getattr(torch, dtype_name(part)))
            self.register_parameter(name, made)

    def matrix(self) -> Any:
        """A `Packed` over the parameters, or the plain parameter."""
        parts = [self._parameters.get(name) for name in _PARTS]
        if self.format is None:
            return parts[0]
        found = self.remembered
        if found is None or found.codes is not parts[0] or found.scales is not parts[1] or found.biases is not parts[2]:
            found = self.remembered = _packed(parts, self.format)
        return found

    def product(self, x: Any, *, transpose: bool = True) -> Any:
        """x [..., K] @ W.T, or x [..., N] @ W; in x's dtype."""
        matrix = self.matrix()
        if self.format is None:
            return x @ (matrix.transpose(-1, -2) if transpose else matrix)
        return forward_only(lambda: quantized_matmul(x, matrix, transpose=transpose), x).to(x.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.remembered = None  # the parameters stay the same objects, over other memory
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "remembered": None}

    def extra_repr(self) -> str:
        """The logical shape and the format."""
        words, fmt = list(self._parameters["weight"].shape), self.format
        return f"{words}, plain" if fmt is None else f"{[*words[:-1], words[-1] * 32 // fmt.bits]}, {fmt}"


def rows_of(packed: Packed) -> Any:
    """The matrix as a tensor in f32, in which every format's values are exact but for the last sum of affine."""
    fmt = packed.format
    scales, biases = packed.scales, packed.biases
    if biases is not None:
        scales, biases = scales.float(), biases.float()
    return dequantize(packed.codes, scales, biases, fmt.group_size, fmt.bits, fmt.mode, dtype="float32")


def _picked(part: Any, rows: Any) -> Any:
    """part[rows]; PyTorch picks no unsigned words on GPUs, so they go as signed ones."""
    if part.dtype != torch.uint32:
        return part[rows]
    return part.view(torch.int32)[rows].view(torch.uint32)


def _packed(parts: Sequence[Any], fmt: Format) -> Packed:
    codes, scales, biases = parts
    return Packed(codes, scales, biases, fmt.bits, fmt.group_size, fmt.mode)


def _parameter(shape: Any, dtype: Any) -> Any:
    return nn.Parameter(torch.empty(tuple(shape), dtype=dtype, device="meta"), requires_grad=False)


class PackedLinear(PackedMatrix):
    """`nn.Linear` with a packed matrix."""

    def __init__(self, replaced: Any, stored: Stored, dtype: Any) -> None:
        super().__init__(stored, dtype, None if replaced.bias is None else tuple(replaced.bias.shape))
        self.in_features, self.out_features = replaced.in_features, replaced.out_features

    def forward(self, x: Any) -> Any:
        """x [..., K] to [..., N], the bias added."""
        product, bias = self.product(x), self._parameters["bias"]
        return product if bias is None else product + bias.to(x.dtype)


class PackedEmbedding(PackedMatrix):
    """`nn.Embedding` with a packed matrix, and Gemma's, which multiplies by a number."""

    def __init__(self, replaced: Any, stored: Stored, dtype: Any) -> None:
        super().__init__(stored, dtype)
        self.num_embeddings, self.embedding_dim = replaced.num_embeddings, replaced.embedding_dim
        self.padding_idx = replaced.padding_idx
        self.embed_scale: float | None = getattr(replaced, "scalar_embed_scale", None)
        # It follows the model through .to(dtype), and says what dtype rows must have.
        self.register_buffer("like", torch.empty(0, dtype=dtype, device="meta"), persistent=False)

    def forward(self, ids: Any) -> Any:
        """Rows [..., K] of `ids` [...], in the model's dtype."""
        whole = self.matrix()
        flat = ids.reshape(-1)
        parts = [None if part is None else _picked(part, flat) for part in (whole.codes, whole.scales, whole.biases)]
        rows = rows_of(dispatch.packed_like(whole, *parts)).to(self.like.dtype).reshape(*ids.shape, -1)
        return rows if self.embed_scale is None else rows * torch.tensor(self.embed_scale, dtype=rows.dtype)


class PackedExperts(nn.Module):  # type: ignore[misc]
    """All experts of a layer; the router's choice comes in, the weighted sum goes out."""

    def __init__(self, gate: PackedMatrix, up: PackedMatrix, down: PackedMatrix, activation: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        self.activation = activation
        self.remembered: tuple[tuple[Any, ...], Experts] | None = None

    def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        """hidden_states [T, H]; top_k_index and top_k_weights [T, k]. Returns [T, H] in the dtype of hidden_states."""
        experts, routing = self._record(), Routing(top_k_index, top_k_weights, None)
        # Who computes in f32 wants f32.
        precision = "exact" if hidden_states.dtype == torch.float32 else "default"
        return forward_only(lambda: moe(hidden_states, routing, experts, precision), hidden_states, top_k_weights)

    def _record(self) -> Experts:
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        biases = [projection._parameters["bias"] for projection in projections]
        key = (*(projection.matrix() for projection in projections), *biases)
        found = self.remembered
        if found is None or any(a is not b for a, b in zip(found[0], key, strict=True)):
            names = ("gate_bias", "up_bias", "down_bias")
            gate, up, down = key[:3]
            made = Experts(gate, up, down, self.activation, **dict(zip(names, biases, strict=True)))
            found = self.remembered = (key, made)
        return found[1]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.remembered = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "remembered": None}


class PackedLatentUp(nn.Module):  # type: ignore[misc]
    """`kv_b_proj` of latent attention, whose rows MLX keeps apart: keys [heads, rank, K], values [heads, V, rank]."""

    def __init__(self, keys: PackedMatrix, values: PackedMatrix) -> None:
        super().__init__()
        self.embed_q, self.unembed_out = keys, values

    def forward(self, latents: Any) -> Any:
        """latents [..., rank] to [..., heads * (K + V)], each head's keys first."""
        rows = latents.reshape(1, -1, latents.shape[-1])
        both = torch.cat((self.embed_q.product(rows, transpose=False), self.unembed_out.product(rows)), dim=-1)
        return both.transpose(0, 1).reshape(*latents.shape[:-1], -1)
