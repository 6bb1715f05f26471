"""The public doors on tensors of the kind "cuda": what the verbs are given, what comes back, what is refused."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats
from coterie import Experts, Packed, Routing
from coterie.arrays import kind_of
from coterie.errors import ArgumentError, CapacityError, UnsupportedError
from coterie.formats import Format
from coterie.moe import moe_reference
from coterie.ops import (
    gather_mm_reference,
    gather_qmm_reference,
    group_reference,
    quantized_matmul_reference,
    weighted_sum_reference,
)
from tensors import off, on, packed_on, same_bits
from tolerance import assert_close, bound

torch = pytest.importorskip("torch")

FOUR_BITS = Format.resolve("affine", 4, 32)


def host(packed: Packed) -> Packed:
    parts = [None if part is None else off(part) for part in (packed.codes, packed.scales, packed.biases)]
    return Packed(*parts, packed.bits, packed.group_size, packed.mode)


@pytest.fixture
def plain_products(doors: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Verbs of matrix products in PyTorch's own operations, with the signatures that the doors call."""
    from coterie.backends import cuda

    def values(weight: Any) -> Any:
        return cuda.dequantize(weight, torch.float32) if isinstance(weight, Packed) else weight.float()

    def quantized_matmul(x: Any, packed: Packed, transpose: bool) -> Any:
        w = values(packed)
        return (x.float() @ (w.mT if transpose else w)).to(x.dtype)

    def gathered(x: Any, w: Any, lhs: Any, rhs: Any) -> Any:
        assert lhs.dtype == rhs.dtype == torch.int32
        assert lhs.ndim == rhs.ndim == 1
        assert x.is_contiguous()
        return (x[lhs].float() @ w[rhs]).to(x.dtype)

    def gather_qmm(x: Any, packed: Packed, lhs: Any, rhs: Any, transpose: bool, _ascending: bool) -> Any:
        assert packed.codes.ndim == 3
        return gathered(x, values(packed).mT if transpose else values(packed), lhs, rhs)

    def gather_mm(a: Any, b: Any, lhs: Any, rhs: Any, _ascending: bool) -> Any:
        assert b.is_contiguous() or b.mT.is_contiguous()
        return gathered(a, b.float(), lhs, rhs)

    def moe(x: Any, routing: Routing, experts: Experts, _precision: str) -> Any:
        assert (routing.ids.dtype, routing.weights.dtype) == (torch.int32, torch.float32)
        hidden = x[:, None, None].float()
        gate, up, down = (values(part)[routing.ids].mT for part in (experts.gate, experts.up, experts.down))
        outputs = (torch.nn.functional.silu(hidden @ gate) * (hidden @ up)) @ down
        return cuda.weighted_sum(outputs[:, :, 0], routing.weights).to(x.dtype)

    verbs = (quantized_matmul, gather_qmm, gather_mm, moe)
    for verb in (*verbs, lambda w, x: (w.float() @ x.float()).to(x.dtype)):
        monkeypatch.setattr(cuda, "matvec" if verb not in verbs else verb.__name__, verb, raising=False)
    return doors


def test_strided_views_pass_and_results_stay_on_the_device(doors: str, rng) -> None:
    gate, up = (on(doors, floats(rng, (6, 80)))[::2, 1::2] for _ in range(2))
    found = coterie.glu(gate, up.requires_grad_(), "relu")
    assert (kind_of(found), found.shape, found.requires_grad) == ("cuda", (3, 40), False)
    np.testing.assert_array_equal(off(found), np.maximum(off(gate), 0) * off(up))
    outputs, weights = on(doors, floats(rng, (2, 5, 3, 16))), on(doors, floats(rng, (2, 3, 5))).mT
    assert_close(
        off(coterie.weighted_sum(outputs.mT.contiguous().mT, weights)),
        weighted_sum_reference(off(outputs), off(weights)),
        bound("float32", 3),
    )


def test_routing_and_groups_are_unsigned_and_made_without_a_wait(
    doors: str, monkeypatch: pytest.MonkeyPatch, rng
) -> None:
    from coterie.backends.cuda import tensors

    logits = on(doors, floats(rng, (2, 3, 24)))
    scale = on(doors, np.abs(floats(rng, (24,)))).bfloat16()

    def waits(_ids: Any) -> None:
        raise AssertionError("nobody need look at ids that are known to be in range")

    monkeypatch.setattr(tensors, "extremes", waits)
    routing = coterie.route(logits, 4, per_expert_scale=scale)
    groups = coterie.group(routing, 24)
    found = (routing.ids, groups.order, groups.offsets, groups.inverse)
    assert {part.dtype for part in found} == {torch.uint32}
    assert (routing.ids.shape, routing.weights.shape) == ((2, 3, 4), (2, 3, 4))
    for part, expected in zip(found[1:], group_reference(off(routing.ids), 24), strict=True):
        np.testing.assert_array_equal(off(part), expected)
    with pytest.raises(AssertionError, match="nobody need look"):
        coterie.group(routing.ids, 24)
    with pytest.raises(AssertionError, match="nobody need look"):
        coterie.group(routing, 23)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"])
def test_ids_of_any_integer_dtype_are_taken_and_checked(doors: str, dtype: str) -> None:
    ids = on(doors, np.array([3, 0, 3, 1], dtype))
    assert off(coterie.group(ids, 4).order).tolist() == [1, 3, 0, 2]
    with pytest.raises(ArgumentError, match="ids has id 3, expected ids from 0 to 2"):
        coterie.group(ids, 3)
    largest = np.iinfo(dtype).max
    with pytest.raises(ArgumentError, match=f"has id {largest}, expected ids from 0 to 3"):
        coterie.group(on(doors, np.array([0, largest], dtype)), 4)
    if dtype.startswith("i"):
        with pytest.raises(ArgumentError, match="has id -1"):
            coterie.group(on(doors, np.array([0, -1], dtype)), 4)


def test_while_a_graph_is_captured_ids_pass_unseen_and_do_no_harm(doors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda import tensors

    monkeypatch.setattr(tensors, "is_capturing", lambda _: True)
    for dtype, stranger in (("int64", 2**32), ("int64", -1), ("uint32", 2**32 - 1), ("int16", 4)):
        groups = coterie.group(on(doors, np.array([3, stranger, 0], dtype)), 4)
        assert off(groups.offsets).tolist() == [0, 1, 1, 1, 2]
        assert off(groups.order).tolist() == [2, 0, 1]
    monkeypatch.setattr("coterie.backends.cuda.codecs.is_capturing", lambda _: True)
    with pytest.raises(UnsupportedError, match="before a CUDA graph is captured"):
        coterie.quantize(on(doors, np.ones((2, 64), np.float32)))


def test_kinds_and_devices_do_not_mix(doors: str) -> None:
    ones = np.ones((2, 4), np.float32)
    with pytest.raises(ArgumentError, match="gate is torch on cuda, up is numpy"):
        coterie.glu(on(doors, ones), ones)
    with pytest.raises(ArgumentError, match="mixed kinds"):
        coterie.gather_mm(on(doors, ones), on(doors, ones.T), rhs_indices=np.zeros(2, np.uint32))
    elsewhere = torch.ones((2, 4), device="meta")
    with pytest.raises(ArgumentError, match=r"mixed kinds|more than one GPU.*is on meta.*move them to one"):
        coterie.glu(on(doors, ones), elsewhere)


def test_nothing_in_gives_nothing_out(doors: str) -> None:
    none, packed = on(doors, np.zeros((0, 64), np.float32)), packed_on(doors, np.ones((4, 64), np.float32), FOUR_BITS)
    results = {
        (0, 64): coterie.glu(none, none),
        (0, 3): coterie.route(none, 3).ids,
        (0, 4): coterie.quantized_matmul(none, packed),
        (9,): coterie.group(none[:, :0].to(torch.int32), 8).offsets,
    }
    for shape, result in results.items():
        assert (kind_of(result), tuple(result.shape), result.device.type) == ("cuda", shape, none.device.type)
    parts = coterie.quantize(on(doors, np.zeros((0, 3, 64), np.float16)))
    assert [(tuple(part.shape), part.dtype) for part in parts] == [
        ((0, 3, 8), torch.uint32), ((0, 3, 1), torch.float16), ((0, 3, 1), torch.float16),
    ]  # fmt: skip


def test_quantized_parts_come_and_go(doors: str, rng) -> None:
    w = floats(rng, (9, 256))
    parts = coterie.quantize(on(doors, w)[1::2, ::2])
    for part, expected in zip(parts, coterie.quantize(w[1::2, ::2]), strict=True):
        assert same_bits(off(part), expected)
    rows = [part[1:3] for part in parts]
    assert same_bits(off(coterie.dequantize(*rows)), off(coterie.dequantize(*parts))[1:3])
    assert coterie.dequantize(*parts, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_accumulate_changes_views_in_place_and_refuses_shared_memory(doors: str, rng) -> None:
    base, outputs = on(doors, np.zeros((6, 10), np.float32)), floats(rng, (3, 5))
    view = base[::2, 1::2]
    assert coterie.accumulate(view, on(doors, outputs), on(doors, np.array(2.0, np.float16))) is view
    expected = np.zeros((6, 10), np.float32)
    expected[::2, 1::2] = 2 * outputs
    np.testing.assert_array_equal(off(base), expected)
    for other in (base[:3], base[1:4]):
        with pytest.raises(ArgumentError, match="share memory"):
            coterie.accumulate(base[:3], other, 1.0)
    coterie.accumulate(base[::2], base[1::2], 1.0)
    np.testing.assert_array_equal(off(base), expected)


def test_products_reach_the_verbs_in_their_form(plain_products: str, rng) -> None:
    device, x = plain_products, floats(rng, (2, 3, 64), "bfloat16")
    w = packed_on(device, floats(rng, (8, 64)), FOUR_BITS)
    found = off(coterie.quantized_matmul(on(device, x), w))  # affine scales are f32: so is the result
    assert_close(found, quantized_matmul_reference(x, host(w)), bound("float32", 64))
    stack = packed_on(device, floats(rng, (2, 2, 8, 64)), FOUR_BITS)
    lhs, rhs = np.array([[1], [0]]), np.array([3, 0, 2])
    found = off(coterie.gather_qmm(on(device, x), stack, lhs_indices=on(device, lhs), rhs_indices=on(device, rhs)))
    assert_close(found, gather_qmm_reference(x, host(stack), lhs, rhs), bound("float32", 64))
    found = off(
        coterie.gather_qmm(on(device, x), packed_on(device, floats(rng, (2, 64, 32)), FOUR_BITS), transpose=False)
    )
    assert found.shape == (2, 3, 32)
    a, b = floats(rng, (2, 2, 3, 16), "float16"), floats(rng, (2, 2, 8, 16))
    found = off(coterie.gather_mm(on(device, a), on(device, b).mT))
    assert_close(found, gather_mm_reference(a, b.swapaxes(-1, -2)), bound("float32", 16))
    found = off(coterie.matvec(on(device, b[0, 0]), on(device, a[0, 0, 0])))
    assert_close(found, b[0, 0] @ a[0, 0, 0].astype(float), bound("float32", 16))
    with pytest.raises(ArgumentError, match="does not ascend"):
        coterie.gather_mm(on(device, a[0, :1]), on(device, b).mT, rhs_indices=on(device, rhs), sorted_indices=True)


def test_experts_are_their_own_native_record_and_aligned(plain_products: str, rng) -> None:
    device, (n_experts, hidden, inner) = plain_products, (5, 64, 32)
    sizes = ((n_experts, inner, hidden), (n_experts, inner, hidden), (n_experts, hidden, inner))
    gate, up, down = (packed_on(device, floats(rng, size, scale=0.2), FOUR_BITS) for size in sizes)
    shifted = torch.cat([torch.zeros(1, dtype=torch.float32, device=gate.scales.device), up.scales.reshape(-1)])[1:]
    up = Packed(up.codes, shifted.view(up.scales.shape), up.biases, 4, 32)
    strided = on(device, floats(rng, sizes[2], scale=0.2).swapaxes(1, 2)).mT
    experts = Experts(gate, up, down)
    assert experts.native is experts
    assert experts.gate is gate
    assert experts.up is not up
    assert experts.up.scales.data_ptr() % 16 == 0
    plain = Experts(gate, up, strided, down_bias=on(device, floats(rng, (n_experts, hidden), "bfloat16")))
    assert plain.down.is_contiguous()
    assert plain.down_bias.dtype == torch.float32
    x, logits = floats(rng, (2, 3, hidden)), on(device, floats(rng, (2, 3, n_experts)))
    routing = coterie.route(logits, 2)
    found = off(coterie.moe(on(device, x), routing, experts))
    reference = Experts(host(gate), host(up), host(down))
    expected = moe_reference(x, Routing(off(routing.ids), off(routing.weights)), reference)
    assert_close(found, expected, bound("float32", hidden, inner, 2))


def test_running_out_of_memory_says_how_much_was_missing(doors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.backends.cuda import activations

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which ..."
        )

    monkeypatch.setattr(activations, "_launch", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 << 30, 80 << 30))
    ones = on(doors, np.ones(8, np.float32))
    with pytest.raises(CapacityError, match=r"glu needs 20\.00 GiB more.*3\.00 of 80\.00 GiB are free") as refusal:
        coterie.glu(ones, ones)
    assert refusal.value.__context__ is None
    assert refusal.value.code == "gpu_memory"
