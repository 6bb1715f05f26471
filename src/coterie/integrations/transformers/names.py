"""How the modules of MLX's files are called in transformers, family by family."""

from dataclasses import dataclass

from coterie.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Rename:
    """What part of a tensor's name in MLX's files is in transformers. Both ends apply to a name once, and undo it."""

    mlx: str
    transformers: str


_EXPERTS = Rename(".mlp.switch_mlp.", ".mlp.experts.")
_LATENT = (
    Rename(".self_attn.embed_q.", ".self_attn.kv_b_proj.embed_q."),
    Rename(".self_attn.unembed_out.", ".self_attn.kv_b_proj.unembed_out."),
)
_GEMMA = Rename(".experts.switch_glu.", ".experts.")

FAMILIES: dict[str, tuple[Rename, ...]] = {
    "deepseek_v2": (_EXPERTS, *_LATENT),
    "deepseek_v3": (_EXPERTS, *_LATENT),
    "gemma4": (_GEMMA, Rename("language_model.model.", "model.language_model.")),
    "gemma4_text": (_GEMMA,),
    "glm4_moe": (_EXPERTS,),
    "gpt_oss": (),
    "mixtral": (
        Rename(".block_sparse_moe.switch_mlp.", ".mlp.experts."),
        Rename(".block_sparse_moe.gate.", ".mlp.gate."),
    ),
    "olmoe": (_EXPERTS,),
    "qwen3_moe": (_EXPERTS,),
}
"""The families that the bridge loads, by `model_type`."""


def renames_of(model_type: str) -> tuple[Rename, ...]:
    """The renames of a family; `UnsupportedError` lists the known ones for any other model_type."""
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"model_type is {str(model_type)[:60]!r}; the bridge to transformers loads {', '.join(sorted(FAMILIES))}",
            code="unsupported_model_type",
        )
    return FAMILIES[model_type]


def in_transformers(name: str, renames: tuple[Rename, ...]) -> str:
    """The name in transformers of the tensor that MLX's file calls `name`."""
    for rename in renames:
        name = name.replace(rename.mlx, rename.transformers, 1)
    return name
