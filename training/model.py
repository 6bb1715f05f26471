"""The model: transformers' Gemma 4 text decoder with its mixture-of-experts block, set up for training.

The architecture is transformers' own; this file only names every field of the configuration, picks starting values
that suit a model of this size, and runs the experts as two grouped matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Gemma4ForCausalLM, Gemma4TextConfig
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

EXPERTS_IMPLEMENTATION = "grouped_training"
END_OF_TEXT_ID = 0
PAD_ID = 1
ROTARY = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}


def config_fields(architecture: dict[str, Any], context: int) -> dict[str, Any]:
    """Every field of `config.json`, none left to a reader's defaults: readers of this family do not share them."""
    return {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "dtype": "bfloat16",
        **architecture,
        "enable_moe_block": True,
        "attention_k_eq_v": True,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": architecture["vocab_size"],
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "use_bidirectional_attention": None,
        "rope_parameters": ROTARY,
        "max_position_embeddings": context,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": END_OF_TEXT_ID,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": PAD_ID,
    }


def build(architecture: dict[str, Any], context: int, *, seed: int, dropout: float) -> Gemma4ForCausalLM:
    """A freshly initialised model in float32, its experts run grouped, with dropout on every residual branch."""
    torch.manual_seed(seed)
    fields = config_fields(architecture, context)
    fields.pop("dtype")
    model = Gemma4ForCausalLM(Gemma4TextConfig(**fields))
    model.config.use_cache = False
    ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, grouped_experts)
    model.set_experts_implementation(EXPERTS_IMPLEMENTATION)
    _initialise(model)
    for layer in model.model.layers:
        for branch in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
            branch.register_forward_hook(lambda module, _, out: functional.dropout(out, dropout, module.training))
    return model


@torch.no_grad()
def _initialise(model: Gemma4ForCausalLM) -> None:
    """Starting values where the library's own suit a model a thousand times larger.

    Attention scores are not divided by sqrt(head_dim) in this family, so the query and key norms start at
    head_dim^-1/4 each. A residual branch ends in a norm, so that norm's weight sets the branch's size at the start.
    The router's input has a root mean square of hidden_size^-1/2, so unit weights give unit logits.
    """
    branch = (2 * len(model.model.layers)) ** -0.5
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.q_norm.weight.fill_(attention.head_dim**-0.25)
        attention.k_norm.weight.fill_(attention.head_dim**-0.25)
        layer.post_attention_layernorm.weight.fill_(branch)
        layer.post_feedforward_layernorm.weight.fill_(branch)
        nn.init.normal_(layer.router.proj.weight, std=0.5)


def grouped_experts(
    experts: nn.Module, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """All experts as two grouped products over rows sorted by expert, operands in bfloat16.

    hidden [T, H]; top_k_index [T, k]; top_k_weights [T, k]; returns [T, H] in hidden's dtype.
    """
    tokens, top_k = top_k_index.shape
    sorted_ids, order = top_k_index.reshape(-1).sort(stable=True)
    boundaries = torch.arange(1, experts.num_experts + 1, device=hidden.device)
    offsets = torch.searchsorted(sorted_ids, boundaries).to(torch.int32)
    rows = hidden.to(torch.bfloat16)[order // top_k]
    gate, up = _grouped(rows, experts.gate_up_proj, offsets).chunk(2, dim=-1)
    out = _grouped(experts.act_fn(gate) * up, experts.down_proj, offsets)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel(), device=order.device))
    out = out[inverse].view(tokens, top_k, -1)
    return (out * top_k_weights.unsqueeze(-1)).sum(1).to(hidden.dtype)


def _grouped(rows: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    return functional.grouped_mm(rows, weight.to(torch.bfloat16).transpose(-2, -1), offs=offsets)


class RouterTap:
    """Reads what every router decided in the last forward pass, for the auxiliary losses and the load report."""

    def __init__(self, model: Gemma4ForCausalLM) -> None:
        self.n_experts: int = model.config.num_experts
        self._decisions: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._logits: list[torch.Tensor] = []
        for layer in model.model.layers:
            layer.router.register_forward_hook(lambda _m, _i, out: self._decisions.append((out[0], out[2])))
            layer.router.proj.register_forward_hook(lambda _m, _i, out: self._logits.append(out))

    def clear(self) -> None:
        """Forget the last pass; to be called before each forward pass."""
        self._decisions.clear()
        self._logits.clear()

    def balance_loss(self) -> torch.Tensor:
        """Load balancing (Fedus et al., 2022, eq. 4): E * sum_e share_e * mean probability_e, the mean over layers."""
        losses = [
            self.n_experts * (self._share(index) * probabilities.mean(0)).sum()
            for probabilities, index in self._decisions
        ]
        return torch.stack(losses).mean()

    def z_loss(self) -> torch.Tensor:
        """Router z-loss (Zoph et al., 2022, eq. 5): mean of logsumexp(logits)^2 over tokens and layers."""
        return torch.stack([z.float().logsumexp(-1).square().mean() for z in self._logits]).mean()

    def counts(self) -> torch.Tensor:
        """Rows routed to each expert in the last pass, int64 [layers, E]."""
        return torch.stack([index.flatten().bincount(minlength=self.n_experts) for _, index in self._decisions])

    def _share(self, index: torch.Tensor) -> torch.Tensor:
        return functional.one_hot(index, self.n_experts).float().mean((0, 1))


def logits_of(model: Gemma4ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits in float32 [B, T, V] for ids [B, T]: the soft cap is applied in float32, also under autocast."""
    hidden = model.model(input_ids=ids).last_hidden_state
    raw = functional.linear(hidden, model.lm_head.weight).float()
    cap = model.config.final_logit_softcapping
    return torch.tanh(raw / cap) * cap
