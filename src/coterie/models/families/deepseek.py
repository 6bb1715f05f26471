"""DeepSeek V2 and V3: latent attention, dense layers first, then routed experts beside shared ones.

The two differ in how a token picks its experts, and in how MLX's files hold the matrices out of the latent.
"""

import re
from collections.abc import Mapping
from typing import Any

from coterie.checkpoint import Fields, HeadPart, Heads, NameMap
from coterie.checkpoint import rope as read_rope
from coterie.models.architecture import Architecture, LatentAttention, LatentModules, Layer, Mlp, Moe, Rope, Router
from coterie.models.common import (
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    activation_of,
    check_groups,
    norm_eps_of,
    refuse_if_set,
    size,
    stacked_experts,
    top_k_of,
)
from coterie.models.family import Family
from coterie.models.rope import yarn_magnitude
from coterie.models.rope_config import rope_of

_INNER_EPS = 1e-6
"""Of the norms inside the attention, whatever rms_norm_eps says; so in every implementation."""

_TRAINING_ONLY = ("aux_loss_alpha", "ep_size", "num_mtp_layers", "num_nextn_predict_layers", "seq_aux")
"""Keys of the training, and of extra layers that predict further tokens, which are left out."""


def architecture_v2(config: Mapping[str, Any]) -> Architecture:
    """The decoder of a `deepseek_v2` config, in either dialect."""
    fields = Fields(config)
    fields.must_be("scoring_func", "softmax", reason="this family scores experts by a softmax")
    fields.must_be("norm_topk_prob", False, reason="this family does not renormalise the weights of experts")
    refuse_if_set(fields, "mlp_bias", "biases in the dense layers")
    return _architecture(fields, FAMILY_V2.name, _router_v2(fields), joined=True, interleaved=True)


def architecture_v3(config: Mapping[str, Any]) -> Architecture:
    """The decoder of a `deepseek_v3` config, in either dialect."""
    fields = Fields(config)
    fields.must_be("scoring_func", "sigmoid", reason="this family scores experts by a sigmoid")
    fields.must_be("topk_method", "noaux_tc", reason="this family chooses experts with a selection bias")
    interleaved = fields.boolean("rope_interleave", default=True)
    return _architecture(fields, FAMILY_V3.name, _router_v3(fields), joined=False, interleaved=interleaved)


def _architecture(fields: Fields, family: str, router: Router, *, joined: bool, interleaved: bool) -> Architecture:
    fields.ignore(*_TRAINING_ONLY)
    attention = _attention(fields, joined=joined, interleaved=interleaved)
    read = Architecture(
        family=family,
        hidden_size=size(fields, "hidden_size"),
        vocab_size=size(fields, "vocab_size"),
        layers=_layers(fields, attention, router),
        norm_eps=norm_eps_of(fields),
        activation=activation_of(fields, "hidden_act", "silu"),
        context_length=size(fields, "max_position_embeddings"),
        prefix="model.",
        head=None if fields.boolean("tie_word_embeddings", default=False) else "lm_head",
    )
    fields.finish()
    return read


def _attention(fields: Fields, *, joined: bool, interleaved: bool) -> LatentAttention:
    n_heads = size(fields, "num_attention_heads", high=MAX_HEADS)
    if fields.integer("num_key_value_heads", default=n_heads) != n_heads:
        raise fields.error("num_key_value_heads", f"{n_heads}, the number of heads: all have keys of their own")
    plain, turned = size(fields, "qk_nope_head_dim", high=MAX_HEADS), size(fields, "qk_rope_head_dim", high=MAX_HEADS)
    if turned % 2:
        raise fields.error("qk_rope_head_dim", "an even number: dimensions are turned in pairs")
    fields.must_be("head_dim", turned, reason="it is another name of qk_rope_head_dim")
    fields.must_be("qk_head_dim", plain + turned, reason="it is qk_nope_head_dim and qk_rope_head_dim together")
    biased = fields.boolean("attention_bias", default=False)
    return LatentAttention(
        n_heads=n_heads,
        rank=size(fields, "kv_lora_rank"),
        query_rank=fields.integer("q_lora_rank", high=1 << 24, default=None),
        plain_dim=plain,
        turned_dim=turned,
        value_dim=size(fields, "v_head_dim", high=MAX_HEADS),
        rope=_rope(fields, turned, interleaved=interleaved),
        scale=(plain + turned) ** -0.5 * _magnitude(fields) ** 2,
        norm_eps=_INNER_EPS,
        joined=joined,
        bias=biased,
        output_bias=biased,
    )


def _rope(fields: Fields, turned: int, *, interleaved: bool) -> Rope:
    return rope_of(fields, turned, kinds=("default", "yarn"), interleaved=interleaved)


def _magnitude(fields: Fields) -> float:
    """YaRN's growth of attention with the context; the turned parts of queries and keys get what differs from it."""
    parameters = read_rope(fields).parameters
    one = parameters.number("mscale", low=0.0, high=1e3, default=0.0)
    every = parameters.number("mscale_all_dim", low=0.0, high=1e3, default=0.0)
    if bool(one) != bool(every):
        raise parameters.error("mscale" if one else "mscale_all_dim", "both mscale and mscale_all_dim, or neither")
    return yarn_magnitude(parameters.number("factor", low=1.0, high=1e6, default=1.0), every) if every else 1.0


def _layers(fields: Fields, attention: LatentAttention, router: Router) -> tuple[Layer, ...]:
    """The first layers are dense, as is every one that `moe_layer_freq` does not divide."""
    n_layers = size(fields, "num_hidden_layers", high=MAX_LAYERS)
    n_dense = fields.integer("first_k_dense_replace", low=0, high=n_layers)
    every = fields.integer("moe_layer_freq", default=1)
    dense = Layer(attention, Mlp(size(fields, "intermediate_size"), before=_BEFORE), moe=None)
    routed = Layer(attention, _shared_experts(fields), moe=_experts(fields, router))
    return tuple(routed if index >= n_dense and index % every == 0 else dense for index in range(n_layers))


_BEFORE = "post_attention_layernorm"


def _shared_experts(fields: Fields) -> Mlp | None:
    n_shared = fields.integer("n_shared_experts", low=0, high=MAX_EXPERTS, default=0)
    if not n_shared:
        return None
    return Mlp(
        width=n_shared * size(fields, "moe_intermediate_size"),
        before=_BEFORE,
        gate="mlp.shared_experts.gate_proj",
        up="mlp.shared_experts.up_proj",
        down="mlp.shared_experts.down_proj",
    )


def _experts(fields: Fields, router: Router) -> Moe:
    return Moe(
        n_experts=_n_experts(fields),
        width=size(fields, "moe_intermediate_size"),
        router=router,
        before=_BEFORE,
        gate="mlp.switch_mlp.gate_proj",
        up="mlp.switch_mlp.up_proj",
        down="mlp.switch_mlp.down_proj",
    )


def _n_experts(fields: Fields) -> int:
    return size(fields, "n_routed_experts", "num_experts", "num_local_experts", high=MAX_EXPERTS)


def _router_v2(fields: Fields) -> Router:
    method = fields.choice("topk_method", options=("greedy", "group_limited_greedy"), default="greedy")
    n_groups, top_groups = (1, 1) if method == "greedy" else _groups(fields, smallest=1)
    fields.ignore("n_group", "topk_group")
    return Router(
        top_k=_top_k(fields),
        module="mlp.gate",
        renormalize=False,
        n_groups=n_groups,
        top_groups=top_groups,
        scaling_factor=_scaling_factor(fields),
    )


def _router_v3(fields: Fields) -> Router:
    n_groups, top_groups = _groups(fields, smallest=2)
    return Router(
        top_k=_top_k(fields),
        module="mlp.gate",
        scoring="sigmoid",
        renormalize=fields.boolean("norm_topk_prob", default=True),
        selection_bias="mlp.gate.e_score_correction_bias",
        n_groups=n_groups,
        top_groups=top_groups,
        group_score="top2",
        scaling_factor=_scaling_factor(fields),
    )


def _top_k(fields: Fields) -> int:
    return top_k_of(fields, _n_experts(fields))


def _groups(fields: Fields, *, smallest: int) -> tuple[int, int]:
    """(groups of experts, how many of them stay in the choice)."""
    n_groups, top_groups = size(fields, "n_group", high=MAX_EXPERTS), size(fields, "topk_group", high=MAX_EXPERTS)
    check_groups(fields, _n_experts(fields), _top_k(fields), n_groups, top_groups, smallest=smallest)
    return n_groups, top_groups


def _scaling_factor(fields: Fields) -> float:
    """What the experts' sum is multiplied by. Readers disagree on the default, so the key has to be there."""
    return fields.number("routed_scaling_factor", low=0.0, high=1e6, above=True)


def _name_map(config: Mapping[str, Any], heads: tuple[Heads, ...]) -> NameMap:
    """Published names to MLX's; layers beyond the decoder's own predict further tokens and are left out."""
    fields = Fields(config)
    layers = "|".join(map(str, range(size(fields, "num_hidden_layers", high=MAX_LAYERS))))
    return NameMap(
        drops=(r".*\.rotary_emb\..*", rf"model\.layers\.(?!({layers})\.)\d+\..*"),
        heads=heads,
        stacks=(stacked_experts(_n_experts(fields)),),
        unquantized=(r".*\.mlp\.gate",),
        keep_dtype=(r".*\.e_score_correction_bias",),
    )


def name_map_v2(config: Mapping[str, Any]) -> NameMap:
    """Published names to MLX's: the experts' matrices of a layer stacked."""
    return _name_map(config, ())


def name_map_v3(config: Mapping[str, Any]) -> NameMap:
    """As in V2, and the matrices out of the latent apart, by head."""
    fields, modules = Fields(config), LatentModules()
    n_heads = size(fields, "num_attention_heads", high=MAX_HEADS)
    plain, value = size(fields, "qk_nope_head_dim", high=MAX_HEADS), size(fields, "v_head_dim", high=MAX_HEADS)
    stem = r"(model\.layers\.\d+)\."
    parts = (
        HeadPart(n_heads, plain + value, 0, plain, transposed=True),
        HeadPart(n_heads, plain + value, plain, plain + value),
    )
    templates = (rf"\1.{modules.key_up}.weight", rf"\1.{modules.value_up}.weight")
    return _name_map(config, (Heads(stem + re.escape(f"{modules.up}.weight"), templates, parts),))


FAMILY_V2 = Family("deepseek_v2", ("deepseek_v2",), architecture_v2, name_map_v2)
FAMILY_V3 = Family("deepseek_v3", ("deepseek_v3",), architecture_v3, name_map_v3)
