"""What the families check, refuse and translate alike."""

from coterie.checkpoint import Fields, Stack
from coterie.errors import UnsupportedError

MAX_LAYERS = 1000
MAX_EXPERTS = 65_535
MAX_HEADS = 4096
MAX_SIZE = 1 << 24
"""No width, vocabulary or context of a decoder is larger; a file that says so is damaged."""

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
"""Names in configs -> the activations of `glu`."""


def size(fields: Fields, *keys: str, high: int = MAX_SIZE) -> int:
    """A required positive integer of at most `high`."""
    return fields.integer(*keys, high=high)


def activation_of(fields: Fields, key: str, default: str) -> str:
    """The activation of the gated linear units, by the name that `glu` knows."""
    return _ACTIVATIONS[fields.choice(key, options=_ACTIVATIONS, default=default)]


def norm_eps_of(fields: Fields) -> float:
    """The epsilon of every RMS norm."""
    return fields.number("rms_norm_eps", low=0.0, high=1.0, above=True)


def check_heads(fields: Fields, n_heads: int, n_kv_heads: int, head_dim: int) -> None:
    """Query heads share key-value heads evenly, and a head consists of pairs for the rotation."""
    if n_heads % n_kv_heads:
        raise fields.error("num_attention_heads", f"a multiple of the {n_kv_heads} key-value heads")
    if head_dim % 2:
        raise fields.error("head_dim", f"an even head_dim, not {head_dim}")


def heads_of(fields: Fields, *, kv_heads_optional: bool = False) -> tuple[int, int, int]:
    """Query heads, key-value heads (as many, where the key may be absent and is) and head_dim (absent: equal shares of
    the hidden size) of grouped-query attention, checked.
    """
    n_heads = size(fields, "num_attention_heads", high=MAX_HEADS)
    if kv_heads_optional:
        n_kv_heads = fields.integer("num_key_value_heads", high=MAX_HEADS, default=n_heads)
    else:
        n_kv_heads = size(fields, "num_key_value_heads", high=MAX_HEADS)
    head_dim = fields.integer("head_dim", high=MAX_HEADS, default=size(fields, "hidden_size") // n_heads)
    check_heads(fields, n_heads, n_kv_heads, head_dim)
    return n_heads, n_kv_heads, head_dim


def top_k_of(fields: Fields, n_experts: int, *keys: str) -> int:
    """Experts a token, from the first of `keys` ("num_experts_per_tok"), of which there cannot be more than experts."""
    keys = keys or ("num_experts_per_tok",)
    top_k = size(fields, *keys, high=MAX_EXPERTS)
    if top_k > n_experts:
        raise fields.error(keys[0], f"at most the number of experts, {n_experts}")
    return top_k


def stacked_experts(n_experts: int) -> Stack:
    """The published matrices of single experts, "mlp.experts.7.up_proj", to MLX's "mlp.switch_mlp.up_proj"."""
    return Stack(
        r"(model\.layers\.\d+\.mlp)\.experts\.(?P<index>\d+)\.(gate|up|down)_proj\.weight",
        r"\1.switch_mlp.\3_proj.weight",
        n_experts,
    )


def check_groups(
    fields: Fields, n_experts: int, top_k: int, n_groups: int, top_groups: int, *, smallest: int = 1
) -> None:
    """Experts divide into groups of at least `smallest`, and the best `top_groups` of them hold the `top_k`."""
    if n_experts % n_groups or (n_groups > 1 and n_experts // n_groups < smallest):
        raise fields.error("n_group", f"groups of equal size, at least {smallest}, of {n_experts} experts")
    if top_groups > n_groups or top_k > top_groups * (n_experts // n_groups):
        raise fields.error("topk_group", f"up to {n_groups} groups that hold num_experts_per_tok, {top_k}, experts")


def refuse_if_set(fields: Fields, key: str, what: str) -> None:
    """`UnsupportedError` if the key has any value but null, false or 0."""
    if key in fields and fields.values[key] not in (False, 0):
        raise UnsupportedError(
            f"{fields.where}: found {key} = {str(fields.values[key])[:60]}; Coterie does not run this family with "
            f"{what}: take a checkpoint without it",
            code=f"unsupported_{key}",
        )
