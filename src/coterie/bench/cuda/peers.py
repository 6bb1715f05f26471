"""Other libraries on the same bf16 weights.

A factory takes a `Case` and returns entrants; it raises `RefusedError` (or ImportError) where it cannot take part.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from coterie.bench.cuda.entrants import Case, Entrant, Layer
from coterie.bench.entrants import RefusedError
from coterie.bench.peers.torch import gated
from coterie.formats import Packed
from coterie.moe import Experts

_GATHERED = 4 << 30
"""Bytes of matrices that `batched_mm` may copy for one call: it takes an expert's for every slot."""


def routed(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids int64 and weights f32 [T, k] by PyTorch's own operations."""
    weights, ids = torch.softmax(logits, -1).topk(top_k, -1)
    return ids, weights / weights.sum(-1, keepdim=True)


def _torch(case: Case) -> list[Entrant]:
    _only_bf16(case)
    if not hasattr(torch, "_grouped_mm"):
        raise RefusedError(f"PyTorch {torch.__version__} has no _grouped_mm")
    layers = [_grouped(experts, case.shape.top_k) for experts in case.layers]
    return [Entrant("torch._grouped_mm", layers, note="slots sorted by expert with PyTorch's own operations")]


def _grouped(experts: Experts, top_k: int) -> Layer:
    assert not isinstance(experts.gate, Packed)
    assert not isinstance(experts.down, Packed)
    gate_up, down = experts.gate.transpose(-2, -1), experts.down.transpose(-2, -1)
    every_expert = torch.arange(experts.n_experts, device=down.device)

    def layer(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        ids, weights = routed(logits, top_k)
        sorted_ids, order = ids.flatten().sort()
        ends = torch.searchsorted(sorted_ids, every_expert, right=True, out_int32=True)
        rows = torch._grouped_mm(x[order // top_k], gate_up, offs=ends)
        gate, up = rows.chunk(2, -1)
        sorted_out = torch._grouped_mm(gated(gate, up, experts.activation), down, offs=ends)
        out = torch.empty_like(sorted_out)
        out[order] = sorted_out
        return (out.view(*ids.shape, -1) * weights[..., None]).sum(1).to(x.dtype)

    return layer


def _transformers(case: Case) -> list[Entrant]:
    _only_bf16(case)
    entrants = [_implementation(case, name) for name in ("grouped_mm", "batched_mm")]
    if case.shape.activation != "swiglu_clamped":
        entrants.append(_implementation(case, "eager"))
    return entrants


def _implementation(case: Case, name: str) -> Entrant:
    """The experts of Mixtral, whose layout is the one that most models of transformers have."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    shape = case.shape
    hidden_act = "gelu_pytorch_tanh" if shape.activation == "gelu_tanh" else "silu"
    config = MixtralConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_local_experts=shape.n_experts,
        num_experts_per_tok=shape.top_k, hidden_act=hidden_act,
    )  # fmt: skip
    config._experts_implementation = name

    def layer(experts: Experts) -> Layer:
        with torch.device("meta"):
            module = MixtralExperts(config)
        for parameter, tensor in (("gate_up_proj", experts.gate), ("down_proj", experts.down)):
            setattr(module, parameter, torch.nn.Parameter(tensor, requires_grad=False))
        if shape.activation == "swiglu_clamped":
            module._apply_gate = _clamped

        def run(x: torch.Tensor, logits: torch.Tensor) -> Any:
            ids, weights = routed(logits, shape.top_k)
            return module(x, ids, weights.to(x.dtype))

        return run

    slot_bytes = 2 * 2 * shape.intermediate * shape.hidden
    most = max(1, _GATHERED // (slot_bytes * shape.top_k)) if name == "batched_mm" else None
    return Entrant(f"transformers {name}", [layer(experts) for experts in case.layers], most_tokens=most)


def _clamped(gate_up: torch.Tensor) -> Any:
    gate, up = gate_up.chunk(2, -1)
    return gated(gate, up, "swiglu_clamped")


def _only_bf16(case: Case) -> None:
    if case.fmt is not None:
        raise RefusedError("bf16 weights only")


PEERS: dict[str, Callable[[Case], Iterable[Entrant]]] = {"torch": _torch, "transformers": _transformers}
