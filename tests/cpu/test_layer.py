"""The fused layer where its three projections differ: in format, in kind, in how they stand in memory."""

import itertools

import numpy as np
import pytest

from coterie.arrays import bfloat16
from coterie.formats import Format, Packed
from coterie.moe import Experts, moe, moe_reference
from coterie.ops import Routing
from cpu.cases import packed_of
from layers import check_default
from tolerance import assert_close, bound

KINDS = {
    "4 bits g64": Format.resolve("affine", 4, 64),
    "8 bits g32": Format.resolve("affine", 8, 32),
    "3 bits g64": Format.resolve("affine", 3, 64),
    "mxfp4": Format.resolve("mxfp4"),
    "bf16": None,
}


def projection(rng: np.random.Generator, name: str, shape: tuple[int, int, int]) -> Packed | np.ndarray:
    fmt = KINDS[name]
    if fmt is not None:
        return packed_of(rng, shape, fmt)
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(bfloat16)


def routing(rng: np.random.Generator, n_tokens: int, n_experts: int, top_k: int) -> Routing:
    ids = np.argsort(rng.random((n_tokens, n_experts)), axis=1)[:, :top_k].astype(np.uint32)
    return Routing(ids, rng.random((n_tokens, top_k), np.float32))


@pytest.mark.parametrize(("gate", "up"), list(itertools.permutations(KINDS, 2)))
def test_projections_in_different_formats(gate: str, up: str, rng: np.random.Generator) -> None:
    n_experts, hidden, intermediate = 5, 128, 192
    experts = Experts(
        projection(rng, gate, (n_experts, intermediate, hidden)),
        projection(rng, up, (n_experts, intermediate, hidden)),
        projection(rng, up, (n_experts, hidden, intermediate)),
        "silu",
    )
    for n_tokens in (1, 21):
        x = rng.standard_normal((n_tokens, hidden), np.float32)
        chosen = routing(rng, n_tokens, n_experts, 2)
        reference, limit = moe_reference(x, chosen, experts), bound("float32", hidden, intermediate)
        assert_close(moe(x, chosen, experts, "exact"), reference, limit)
        check_default(moe(x, chosen, experts), reference, limit)
