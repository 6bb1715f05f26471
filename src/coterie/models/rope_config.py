"""A config's rotary embedding, of every kind that the decoder computes.

    default        theta^(-2i / d), on the first `partial_rotary_factor` of a head
    linear         the same, of positions divided by `factor`
    proportional   the frequencies of the whole head, of which the first `partial_rotary_factor` turn
    llama3         slow pairs slowed further by `factor`
    yarn           the same with a ramp over the pairs, and larger queries and keys

YaRN follows the original implementation of gpt-oss: `truncate` decides whether the ramp ends on whole pairs, which
mlx-lm does whatever the config says. `"truncate": true` in the config gives what mlx-lm computes.
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from coterie.checkpoint import Fields
from coterie.checkpoint import rope as read_rope
from coterie.checkpoint.config import Rope as RopeFields
from coterie.errors import ConfigError, UnsupportedError
from coterie.models.architecture import Rope
from coterie.models.rope import default_rope, linear_rope, llama3_rope, proportional_rope, yarn_magnitude, yarn_rope

_MAX_LENGTH = 1 << 24
SCALED_KINDS = ("default", "linear", "llama3", "yarn")
"""Kinds for families whose original implementation takes any scaling."""


def rope_of(
    fields: Fields,
    head_dim: int,
    layer_type: str | None = None,
    *,
    kinds: Collection[str] = SCALED_KINDS,
    partial: bool = False,
    interleaved: bool = False,
) -> Rope:
    """The rotary embedding of heads of `head_dim`; `UnsupportedError` for a kind that is not among `kinds`.

    partial: the family turns a part of a head where the config says so. interleaved: as in `Rope`.
    """
    read = read_rope(fields, layer_type)
    if read.kind not in kinds:
        raise UnsupportedError(
            f"{read.parameters.where}: found a rotary embedding of kind {read.kind} (rope_type); Coterie runs this "
            f"family with {', '.join(kinds)}: take a checkpoint without it",
            code="unsupported_rope",
        )
    if read.partial_rotary_factor != 1.0 and not partial and read.kind != "proportional":
        raise UnsupportedError(
            f"{fields.where}: found partial_rotary_factor = {read.partial_rotary_factor:g}; this family turns whole "
            "heads: take a checkpoint without it",
            code="unsupported_rope",
        )
    rope = _BUILDERS[read.kind](read, head_dim)
    read.parameters.finish()
    return replace(rope, interleaved=interleaved)


def _turning(read: RopeFields, head_dim: int) -> int:
    """How many dimensions of a head turn."""
    dims = int(head_dim * read.partial_rotary_factor)
    if dims < 2 or dims % 2:
        raise ConfigError(
            f"{read.parameters.where}: found partial_rotary_factor = {read.partial_rotary_factor:g}, which turns "
            f"{dims} of {head_dim} dimensions, expected an even number of them; correct it or fetch the file again",
            code="config_contradiction",
        )
    return dims


def _factor(read: RopeFields) -> float:
    return read.parameters.number("factor", low=1.0, high=1e6)


def _original_length(read: RopeFields) -> int:
    return read.parameters.integer("original_max_position_embeddings", high=_MAX_LENGTH)


def _default(read: RopeFields, head_dim: int) -> Rope:
    read.parameters.must_be("factor", 1, 1.0, reason="a rotary embedding of kind default has no scaling factor")
    return default_rope(read.base, _turning(read, head_dim))


def _linear(read: RopeFields, head_dim: int) -> Rope:
    return linear_rope(read.base, _turning(read, head_dim), _factor(read))


def _proportional(read: RopeFields, head_dim: int) -> Rope:
    factor = read.parameters.number("factor", low=1.0, high=1e6, default=1.0)
    return proportional_rope(read.base, head_dim, read.partial_rotary_factor, factor)


def _llama3(read: RopeFields, head_dim: int) -> Rope:
    parameters = read.parameters
    low = parameters.number("low_freq_factor", low=0.0, high=1e6, above=True)
    high = parameters.number("high_freq_factor", low=0.0, high=1e6, above=True)
    if low >= high:
        raise parameters.error("high_freq_factor", f"more than low_freq_factor, {low:g}")
    return llama3_rope(
        read.base,
        _turning(read, head_dim),
        factor=_factor(read),
        low_frequency=low,
        high_frequency=high,
        original_length=_original_length(read),
    )


def _yarn(read: RopeFields, head_dim: int) -> Rope:
    parameters = read.parameters
    fast = parameters.number("beta_fast", low=0.0, high=1e6, above=True, default=32.0)
    slow = parameters.number("beta_slow", low=0.0, high=1e6, above=True, default=1.0)
    if slow >= fast:
        raise parameters.error("beta_fast", f"more than beta_slow, {slow:g}")
    return yarn_rope(
        read.base,
        _turning(read, head_dim),
        factor=_factor(read),
        original_length=_original_length(read),
        beta_fast=fast,
        beta_slow=slow,
        truncate=parameters.boolean("truncate", default=True),
        attention_factor=_attention_factor(read),
    )


def _attention_factor(read: RopeFields) -> float | None:
    """What queries and keys are multiplied by, or None for YaRN's own; mscale counts only beside mscale_all_dim."""
    given = read.parameters.number("attention_factor", low=0.0, high=1e3, above=True, default=None)
    scale = read.parameters.number("mscale", low=0.0, high=1e3, default=0.0)
    scale_of_all = read.parameters.number("mscale_all_dim", low=0.0, high=1e3, default=0.0)
    if given is not None or not scale or not scale_of_all:
        return given
    return yarn_magnitude(_factor(read), scale) / yarn_magnitude(_factor(read), scale_of_all)


_BUILDERS: dict[str, Callable[[RopeFields, int], Rope]] = {
    "default": _default,
    "linear": _linear,
    "proportional": _proportional,
    "llama3": _llama3,
    "yarn": _yarn,
}
