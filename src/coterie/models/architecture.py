"""A decoder as data. A family fills these records from its config; the decoder reads nothing else.

What one layer computes (any norm whose module is None is the identity, any branch that is None is absent):

    h = h + after( output( attention( before(h) ) ) )
    f = mlp.after( mlp( mlp.before(h) ) )  +  moe.after( experts( moe.before(h), routing ) )
    h = h + after_branches(f)
    h = (h + input.after( input.output( activation(input.gate(h)) * own input of the layer ) )) * scalar

Module paths are relative to the layer ("self_attn.q_proj"); a matrix is the tensor "<path>.weight" with its scales and
biases where it is quantised, a norm is the vector "<path>.weight", and a plain vector is the tensor "<path>" itself.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from coterie.ops.routing import GroupScore, Scoring


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al., RoFormer, 2021): dimensions i and i + n pair up, or 2i and 2i + 1.

    frequencies: n angles in radians a position, n <= head_dim / 2; dimensions from 2n on pass through, and so do pairs
    whose frequency is 0. amplitude: what turned dimensions are multiplied by (YaRN's attention factor). interleaved:
    neighbours are the pairs.
    """

    frequencies: tuple[float, ...]
    amplitude: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class AttentionModules:
    """Where the weights of an attention block are; None where the family has no such module."""

    before: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str | None = "self_attn.v_proj"
    output: str = "self_attn.o_proj"
    query_norm: str | None = "self_attn.q_norm"
    key_norm: str | None = "self_attn.k_norm"
    after: str | None = None
    sinks: str | None = None


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention. Query q sees key k iff 0 <= q - k, and q - k < window where there is one.

    A `modules.value` of None takes the key projection, as it is before norm and rotation, for the values as well.
    normalize_values: values pass an RMS norm without weight. norm_span: query and key norms run, before the rotation,
    over each head or over the whole projection. clip: queries, keys and values are limited to +-clip after the norms.
    `modules.sinks` is a vector [n_heads] of scores that take part in each head's softmax and carry no value.
    input_bias, output_bias: the projections of queries, keys and values, or of the output, add "<module>.bias".
    shares: the earlier layer whose keys and values, with the same heads and window, this layer reads; it has
    none of its own, nor the modules that make them.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: Rope
    scale: float
    window: int | None = None
    normalize_values: bool = False
    norm_span: Literal["head", "projection"] = "head"
    clip: float | None = None
    input_bias: bool = False
    output_bias: bool = False
    shares: int | None = None
    modules: AttentionModules = AttentionModules()

    @property
    def cached(self) -> tuple[int, int, int]:
        """What a token leaves in the cache: heads, numbers of a key, numbers of a value."""
        return self.n_kv_heads, self.head_dim, self.head_dim


@dataclass(frozen=True, slots=True)
class LatentModules:
    """Where the weights of a latent attention block are.

    Queries come from `query`, or through a low rank from `query_down`, `query_norm` and `query_up`. The matrices out of
    the latent are one, `up` [n_heads * (plain_dim + value_dim), rank], or stacks by head: `key_up` [n_heads, rank,
    plain_dim], transposed, and `value_up` [n_heads, value_dim, rank].
    """

    before: str = "input_layernorm"
    query: str = "self_attn.q_proj"
    query_down: str = "self_attn.q_a_proj"
    query_norm: str = "self_attn.q_a_layernorm"
    query_up: str = "self_attn.q_b_proj"
    down: str = "self_attn.kv_a_proj_with_mqa"
    norm: str = "self_attn.kv_a_layernorm"
    up: str = "self_attn.kv_b_proj"
    key_up: str = "self_attn.embed_q"
    value_up: str = "self_attn.unembed_out"
    output: str = "self_attn.o_proj"
    after: str | None = None


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, 2024): keys and values of all heads come out of one latent of `rank`
    numbers a token, which is what the cache keeps, and one turned key that all heads share.

        [c, t] = down(x);  latent = norm(c);  key_h = [key_up_h latent, rotary(t)];  value_h = value_up_h latent

    A query has plain_dim numbers and turned_dim that are turned. query_rank of None: queries have no low rank. joined:
    whether MLX's files of the family have `modules.up` or the stacks by head; the other form is read too. norm_eps: of
    the two inner norms. bias, output_bias: `query_down` and `down`, or the output, add "<module>.bias".
    """

    n_heads: int
    rank: int
    query_rank: int | None
    plain_dim: int
    turned_dim: int
    value_dim: int
    rope: Rope
    scale: float
    norm_eps: float
    joined: bool
    bias: bool = False
    output_bias: bool = False
    modules: LatentModules = LatentModules()
    window: ClassVar[None] = None
    shares: ClassVar[None] = None

    @property
    def cached(self) -> tuple[int, int, int]:
        """What a token leaves in the cache: one head with a latent and a turned key."""
        return 1, self.rank, self.turned_dim


@dataclass(frozen=True, slots=True)
class Mlp:
    """A dense gated linear unit: down(activation(gate(x)) * up(x)), `width` hidden units.

    Beside routed experts this is the shared expert: several of them are one of their width together.
    """

    width: int
    before: str | None
    after: str | None = None
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"


@dataclass(frozen=True, slots=True)
class Router:
    """How a token picks its experts: the fields of `coterie.ops.RouteSpec` with the modules of the learnt parts.

    `norm` of None: the router reads the experts' input. Otherwise it reads rms_norm(h) * weight * norm_scale, where h
    is the residual stream itself and the weight is the vector at `norm`. per_expert_scale and selection_bias are paths
    of vectors [n_experts]; bias: the logits add "<module>.bias". A softmax over the chosen experts' logits alone is
    scoring "softmax" with renormalize: the same numbers.
    """

    top_k: int
    module: str
    renormalize: bool = True
    norm: str | None = None
    norm_scale: float = 1.0
    per_expert_scale: str | None = None
    scoring: Scoring = "softmax"
    selection_bias: str | None = None
    n_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    scaling_factor: float = 1.0
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Moe:
    """Routed experts, each a gated linear unit of `width` hidden units; stacked matrices [n_experts, out, in].

    bias: gate, up and down add "<module>.bias", a vector for each expert [n_experts, out].
    """

    n_experts: int
    width: int
    router: Router
    before: str
    gate: str
    up: str
    down: str
    after: str | None = None
    bias: bool = False


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """A vector for each token and layer beside the residual stream (per-layer embeddings, as in Gemma 3n and 4).

    With e the scaled embedding of the tokens, n_layers * width numbers make one of `width` for each layer:

        u = (rms_norm( projection(e) * projection_scale ) + embedding(ids) * embedding_scale) * scale

    The paths of `gate`, `output` and `after` are relative to the layer, where the formula of this module reads u.
    """

    width: int
    vocab_size: int
    embedding_scale: float
    projection_scale: float
    scale: float
    embedding: str = "embed_tokens_per_layer"
    projection: str = "per_layer_model_projection"
    norm: str = "per_layer_projection_norm"
    gate: str = "per_layer_input_gate"
    output: str = "per_layer_projection"
    after: str = "post_per_layer_input_norm"


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer: attention, then a dense branch, an experts branch, or the sum of both."""

    attention: Attention | LatentAttention
    mlp: Mlp | None
    moe: Moe | None
    after_branches: str | None = None
    scalar: str | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A whole decoder. `prefix` stands before every path ("language_model.model."), `head` is None for tied embeddings.

    embedding_scale multiplies embedded tokens; logit_cap c turns logits z into c * tanh(z / c).
    """

    family: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Layer, ...]
    norm_eps: float
    activation: str
    context_length: int
    prefix: str
    head: str | None
    embedding_scale: float = 1.0
    logit_cap: float | None = None
    layer_inputs: LayerInputs | None = None
    embedding: str = "embed_tokens"
    final_norm: str = "norm"
