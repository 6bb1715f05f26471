"""The fused kernels of decoding, straight from packed weights: every format that they read, against float64."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats, give, pack, take
from coterie import Experts, Routing
from coterie.formats import Format
from coterie.moe import moe_reference
from layers import check, experts_of, routing_of
from tolerance import assert_close, bound

pytestmark = pytest.mark.usefixtures("engine")

FORMATS = [Format.resolve("affine", bits, group) for bits in (4, 8) for group in (32, 64, 128)]
MXFP4 = Format.resolve("mxfp4")


def scaled(fmt: Format, dtype: str, rng: Any, n: int, rows: int, columns: int) -> Any:
    return pack(floats(rng, (n, rows, columns), scale=columns**-0.5), fmt, "mlx", dtype)


@pytest.mark.parametrize("fmt", [*FORMATS, MXFP4], ids=str)
def test_every_format_with_few_tokens(fmt: Format, rng: Any) -> None:
    for hidden, inner, k in [(128, 128, 1), (256, 384, 2)]:
        experts = experts_of(rng, "mlx", 5, hidden, inner, fmt)
        for n_tokens in (1, 3):
            check(floats(rng, (n_tokens, hidden)), *routing_of(rng, n_tokens, k, 5), experts)


@pytest.mark.parametrize(("fmt", "dtype"), [(FORMATS[1], "bfloat16"), (FORMATS[4], "float16")], ids=str)
def test_scales_and_tokens_in_sixteen_bits(fmt: Format, dtype: str, rng: Any) -> None:
    gate, up, down = (scaled(fmt, dtype, rng, 4, *shape) for shape in ((192, 320), (192, 320), (320, 192)))
    experts = Experts(gate, up, down, "gelu_tanh")
    check(floats(rng, (2, 320), dtype), *routing_of(rng, 2, 3, 4), experts)


@pytest.mark.parametrize("fused", [False, True])
def test_gpt_oss_with_biases_and_clamps(fused: bool, rng: Any) -> None:
    experts = experts_of(rng, "mlx", 6, 96, 160, MXFP4, fused=fused, biases=True, activation="swiglu_clamped")
    check(floats(rng, (3, 96), scale=3), *routing_of(rng, 3, 4, 6), experts)


def test_gate_and_up_in_one_matrix(rng: Any) -> None:
    experts = experts_of(rng, "mlx", 3, 64, 96, fused=True, activation="gelu_tanh")
    check(floats(rng, (2, 64)), *routing_of(rng, 2, 2, 3), experts)


@pytest.mark.parametrize("width", [704, 2112, 2816])
def test_widths_of_gemma(width: int, rng: Any) -> None:
    experts = experts_of(rng, "mlx", 2, width, 64, FORMATS[1])
    check(floats(rng, (1, width)), *routing_of(rng, 1, 2, 2), experts)
    experts = experts_of(rng, "mlx", 2, 64, width, FORMATS[1])
    check(floats(rng, (1, 64)), *routing_of(rng, 1, 2, 2), experts)


def test_up_to_sixty_three_rows_and_one_more(rng: Any) -> None:
    """From 64 routed rows on MLX's grouped products take over: the results on both sides agree with the reference."""
    experts = experts_of(rng, "mlx", 40, 32, 32)
    for n_tokens, k in [(63, 1), (7, 9), (3, 17), (1, 40), (64, 1), (8, 9)]:
        check(floats(rng, (n_tokens, 32)), *routing_of(rng, n_tokens, k, 40), experts)


def test_the_last_expert_and_one_twice(rng: Any) -> None:
    experts = experts_of(rng, "mlx", 96, 32, 32)
    ids = np.array([[95, 95, 0]], np.uint32)
    check(floats(rng, (1, 32)), ids, np.array([[0.5, 0.25, 0.25]], np.float32), experts)


def test_a_skipped_slot_reads_nothing_of_its_expert(rng: Any) -> None:
    """An expert whose scales are infinite and NaN, skipped: neither reaches the sum."""
    gate, up, down = (scaled(FORMATS[0], "float32", rng, 3, 32, 32) for _ in range(3))
    for part in (gate, up, down):
        part.scales[1] = np.nan
        part.biases[1] = np.inf
    ids, weights = np.array([[0, 1, 2]], np.uint32), np.array([[0.7, 5e-11, 0.3]], np.float32)
    x, experts = floats(rng, (1, 32)), Experts(gate, up, down)
    found = take(
        coterie.moe(give(x, "mlx"), Routing(give(ids, "mlx"), give(weights, "mlx")), experts), "mlx", "float32"
    )
    assert_close(found, moe_reference(x, Routing(ids, weights), experts), bound("float32", 32, 32, 3))


def test_mixed_formats_between_the_kernels(rng: Any) -> None:
    experts = experts_of(rng, "mlx", 3, 64, 64, FORMATS[1], down_fmt=FORMATS[3])
    check(floats(rng, (2, 64)), *routing_of(rng, 2, 2, 3), experts)


def test_every_code_of_mxfp4(rng: Any) -> None:
    """All 16 codes twice a row, under scales from 2^-7 to 2^5."""
    words = np.tile(np.array([0x76543210, 0xFEDCBA98], np.uint32), (2, 32, 2))
    exponents = rng.integers(120, 133, (2, 32, 1), dtype=np.uint8)
    matrix = coterie.Packed(give(words, "mlx"), give(exponents, "mlx"), None, mode="mxfp4")
    experts = Experts(matrix, matrix, matrix, "silu")
    check(floats(rng, (1, 32)), np.array([[1, 0]], np.uint32), np.ones((1, 2), np.float32), experts)


def test_nothing_looks_at_experts_that_were_not_chosen(rng: Any) -> None:
    gate, up, down = (scaled(FORMATS[0], "float32", rng, 4, 32, 32) for _ in range(3))
    x, (ids, weights) = floats(rng, (2, 32)), routing_of(rng, 2, 2, 4, empty=2)
    reference = moe_reference(x, Routing(ids, weights), Experts(gate, up, down))
    for poison in (np.nan, 1e30):
        for part in (gate, up, down):
            part.scales[2] = poison
        found = coterie.moe(give(x, "mlx"), Routing(give(ids, "mlx"), give(weights, "mlx")), Experts(gate, up, down))
        assert_close(take(found, "mlx", "float32"), reference, bound("float32", 32, 32, 2))


def test_formats_that_the_kernels_do_not_read_go_through_mlx(rng: Any) -> None:
    for fmt in (Format.resolve("affine", 6, 64), Format.resolve("nvfp4"), "bfloat16"):
        experts = experts_of(rng, "mlx", 3, 64, 64, fmt)
        check(floats(rng, (1, 64)), *routing_of(rng, 1, 2, 3), experts)
