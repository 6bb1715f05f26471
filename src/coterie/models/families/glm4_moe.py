"""GLM-4.5: the first layers dense, then routed experts beside shared ones; half of each head turns.

The router scores by sigmoid and chooses with a bias that its weights do not have, within the best groups of experts.
"""

from collections.abc import Mapping
from typing import Any

from coterie.checkpoint import Fields, NameMap
from coterie.models.architecture import Architecture, Attention, AttentionModules, Layer, Mlp, Moe, Router
from coterie.models.common import (
    MAX_EXPERTS,
    MAX_LAYERS,
    activation_of,
    check_groups,
    heads_of,
    norm_eps_of,
    size,
    stacked_experts,
    top_k_of,
)
from coterie.models.family import Family
from coterie.models.rope_config import rope_of

_BEFORE = "post_attention_layernorm"


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The decoder of a `glm4_moe` config, in either dialect; layers that predict further tokens are left out."""
    fields = Fields(config)
    fields.must_be("scoring_func", "sigmoid", reason="the family's router scores by sigmoid")
    fields.must_be("topk_method", "noaux_tc", reason="the family's router chooses with a bias")
    fields.ignore("num_nextn_predict_layers", "num_mtp_layers")
    read = Architecture(
        family=FAMILY.name,
        hidden_size=size(fields, "hidden_size"),
        vocab_size=size(fields, "vocab_size"),
        layers=_layers(fields),
        norm_eps=norm_eps_of(fields),
        activation=activation_of(fields, "hidden_act", "silu"),
        context_length=size(fields, "max_position_embeddings"),
        prefix="model.",
        head=None if fields.boolean("tie_word_embeddings", default=False) else "lm_head",
    )
    fields.finish()
    return read


def _layers(fields: Fields) -> tuple[Layer, ...]:
    n_layers = size(fields, "num_hidden_layers", high=MAX_LAYERS)
    n_dense = fields.integer("first_k_dense_replace", low=0, high=n_layers)
    attention, moe = _attention(fields), _experts(fields)
    width = size(fields, "moe_intermediate_size") * size(fields, "n_shared_experts", high=MAX_EXPERTS)
    dense = Layer(attention, mlp=Mlp(size(fields, "intermediate_size"), before=_BEFORE), moe=None)
    shared = Mlp(
        width,
        before=_BEFORE,
        gate="mlp.shared_experts.gate_proj",
        up="mlp.shared_experts.up_proj",
        down="mlp.shared_experts.down_proj",
    )
    return (dense,) * n_dense + (Layer(attention, mlp=shared, moe=moe),) * (n_layers - n_dense)


def _attention(fields: Fields) -> Attention:
    n_heads, n_kv_heads, head_dim = heads_of(fields)
    if "partial_rotary_factor" not in fields and "rope_parameters" not in fields:
        raise fields.error("partial_rotary_factor", "the share of a head that turns", code="config_missing")
    modules = AttentionModules()
    if not fields.boolean("use_qk_norm"):
        modules = AttentionModules(query_norm=None, key_norm=None)
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=rope_of(fields, head_dim, partial=True),
        scale=head_dim**-0.5,
        input_bias=fields.boolean("attention_bias"),
        modules=modules,
    )


def _experts(fields: Fields) -> Moe:
    n_experts = _n_experts(fields)
    top_k = top_k_of(fields, n_experts)
    n_groups, top_groups = size(fields, "n_group", high=MAX_EXPERTS), size(fields, "topk_group", high=MAX_EXPERTS)
    check_groups(fields, n_experts, top_k, n_groups, top_groups, smallest=2)
    return Moe(
        n_experts=n_experts,
        width=size(fields, "moe_intermediate_size"),
        router=Router(
            top_k=top_k,
            module="mlp.gate",
            scoring="sigmoid",
            renormalize=fields.boolean("norm_topk_prob"),
            selection_bias="mlp.gate.e_score_correction_bias",
            n_groups=n_groups,
            top_groups=top_groups,
            group_score="top2",
            scaling_factor=fields.number("routed_scaling_factor", low=0.0, high=1e6, above=True),
        ),
        before=_BEFORE,
        gate="mlp.switch_mlp.gate_proj",
        up="mlp.switch_mlp.up_proj",
        down="mlp.switch_mlp.down_proj",
    )


def _n_experts(fields: Fields) -> int:
    return size(fields, "n_routed_experts", "num_local_experts", high=MAX_EXPERTS)


def name_map(config: Mapping[str, Any]) -> NameMap:
    """Published names to MLX's: experts stacked, layers that predict further tokens left out, the router as it is."""
    fields = Fields(config)
    n_layers = size(fields, "num_hidden_layers", high=MAX_LAYERS)
    n_further = fields.integer("num_nextn_predict_layers", "num_mtp_layers", low=0, high=MAX_LAYERS, default=1)
    further = "|".join(str(n_layers + i) for i in range(n_further))
    return NameMap(
        drops=(r".*\.rotary_emb\..*", rf"model\.layers\.(?:{further})\..*") if further else (r".*\.rotary_emb\..*",),
        stacks=(stacked_experts(_n_experts(fields)),),
        unquantized=(r".*\.mlp\.gate",),
        keep_dtype=(r".*\.e_score_correction_bias",),
    )


FAMILY = Family("glm4_moe", ("glm4_moe",), architecture, name_map)
