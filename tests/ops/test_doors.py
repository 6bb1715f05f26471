"""The doors: which arrays are let in, what comes back, which back end computes, and what it costs to pass."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import KINDS, floats, give, pack, ready
from coterie import Experts, Packed, Routing, backends
from coterie.arrays import device_of, dtype_name, kind_of
from coterie.errors import ArgumentError, BackendUnavailableError, UnsupportedError
from coterie.formats import Format
from coterie.ops import dispatch
from layers import FOUR_BITS, experts_of

OTHERS = {"numpy": "torch", "torch": "mlx", "mlx": "numpy", "cuda": "torch"}


def calls(kind: str, second: str) -> dict[str, Any]:
    """Every operation of two or more arrays, with its first argument of `kind` and the others of `second`."""
    rng = np.random.default_rng(0)
    matrix, stack = floats(rng, (3, 64)), floats(rng, (3, 1, 64))
    ids, ones = np.zeros((3, 2), np.uint32), np.ones((3, 2), np.float32)
    packed = pack(floats(rng, (4, 8, 64)), FOUR_BITS, second)
    flat = pack(floats(rng, (8, 64)), FOUR_BITS, second)
    experts = experts_of(rng, second, 4, 64, 32)
    return {
        "glu": lambda: coterie.glu(give(matrix, kind), give(matrix, second)),
        "quantized_matmul": lambda: coterie.quantized_matmul(give(matrix, kind), flat),
        "gather_qmm": lambda: coterie.gather_qmm(give(stack, kind), packed, rhs_indices=give(ids[:, 0], kind)),
        "gather_mm": lambda: coterie.gather_mm(give(stack, kind), give(stack, second).swapaxes(-1, -2)),
        "route": lambda: coterie.route(give(matrix, kind), 2, per_expert_scale=give(matrix[0], second)),
        "gather_topk_weights": lambda: coterie.gather_topk_weights(give(matrix, kind), give(ids, second), None, 2),
        "weighted_sum": lambda: coterie.weighted_sum(give(stack, kind), give(ones[:, :1], second)),
        "accumulate": lambda: coterie.accumulate(give(matrix, kind), give(matrix, second), 0.5),
        "matvec": lambda: coterie.matvec(give(matrix, kind), give(matrix[0], second)),
        "moe": lambda: coterie.moe(give(matrix, kind), Routing(give(ids, second), give(ones, second)), experts),
        "dequantize": lambda: coterie.dequantize(
            give(np.zeros((2, 8), np.uint32), kind), flat.scales[:2], flat.biases[:2]
        ),
        "Packed": lambda: Packed(give(np.zeros((8, 8), np.uint32), kind), flat.scales, flat.biases, 4, 32),
        "Experts": lambda: Experts(pack(floats(rng, (4, 32, 64)), FOUR_BITS, kind), experts.up, experts.down),
    }


@pytest.mark.parametrize("name", list(calls("numpy", "numpy")))
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_do_not_mix(kind: str, name: str) -> None:
    ready(kind)
    ready(OTHERS[kind])
    with pytest.raises(ArgumentError, match="mixed kinds") as refusal:
        calls(kind, OTHERS[kind])[name]()
    assert refusal.value.code == "mixed_kinds"
    assert kind in str(refusal.value)
    assert OTHERS[kind] in str(refusal.value)


@pytest.mark.parametrize("wrong", [[1.0, 2.0], 3.0, None, "x"])
def test_what_is_no_array_is_refused(wrong: object) -> None:
    ones = np.ones((2, 4), np.float32)
    for call in (
        lambda: coterie.glu(wrong, ones),
        lambda: coterie.glu(ones, wrong),
        lambda: coterie.glu_fused(wrong),
        lambda: coterie.route(wrong, 1),
        lambda: coterie.group(wrong, 4),
        lambda: coterie.quantize(wrong),
        lambda: coterie.matvec(ones, wrong),
        lambda: coterie.weighted_sum(wrong, ones),
    ):
        with pytest.raises(ArgumentError, match="expected a NumPy array"):
            call()


def test_dtypes_and_shapes_that_do_not_fit_are_refused_by_name() -> None:
    ones = np.ones((2, 4), np.float32)
    refusals = {
        "gate is float32 and up is float16": lambda: coterie.glu(ones, ones.astype(np.float16)),
        r"gate is \[2, 4\] and up is \[4, 2\]": lambda: coterie.glu(ones, ones.T),
        "gate is int32": lambda: coterie.glu(ones.astype(np.int32), ones),
        "gate is >f4": lambda: coterie.glu(ones.astype(">f4"), ones),
        "expected an even last axis": lambda: coterie.glu_fused(ones[:, :3]),
        "activation 'swiglu' is not known; expected one of silu": lambda: coterie.glu(ones, ones, "swiglu"),
        r"expected \[..., k, H\] and \[..., k\]": lambda: coterie.weighted_sum(ones, ones),
        "codes are int32, expected uint32": lambda: coterie.dequantize(ones.astype(np.int32), ones, ones),
    }
    for message, call in refusals.items():
        with pytest.raises(ArgumentError, match=message):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_gives_nothing_out(kind: str) -> None:
    ready(kind)
    none, ids = give(np.zeros((0, 8), np.float32), kind), give(np.zeros((0, 2), np.uint32), kind)
    packed = pack(np.ones((4, 64), np.float32), FOUR_BITS, kind)
    no_hidden = give(np.zeros((2, 3, 0), np.float32), kind)
    results = {
        (0, 8): coterie.glu(none, none),
        (0, 4): coterie.glu_fused(none),
        (0, 3): coterie.route(none, 3).ids,
        (0, 2): coterie.gather_topk_weights(none, ids, None, 2).weights,
        (2, 0): coterie.weighted_sum(no_hidden, give(np.ones((2, 3), np.float32), kind)),
        (5, 0, 4): coterie.quantized_matmul(give(np.zeros((5, 0, 64), np.float32), kind), packed),
    }
    for shape, result in results.items():
        assert kind_of(result) == kind
        assert tuple(result.shape) == shape
    assert tuple(coterie.accumulate(none, none, 1.0).shape) == (0, 8)


def test_tensors_are_seen_without_a_copy_and_come_back_on_their_device() -> None:
    torch = pytest.importorskip("torch")
    ready("torch", "accumulate", "glu")
    accumulator = torch.zeros(64)
    address = accumulator.data_ptr()
    coterie.accumulate(accumulator, torch.ones(64, dtype=torch.bfloat16), 2.0)
    assert accumulator.data_ptr() == address
    assert accumulator.tolist() == [2.0] * 64
    gate = torch.ones(64, dtype=torch.bfloat16, requires_grad=True)
    result = coterie.glu(gate, gate)
    assert (device_of(result), dtype_name(result), result.requires_grad) == ("cpu", "bfloat16", False)
    elsewhere = torch.ones(64, device="meta")
    with pytest.raises(BackendUnavailableError, match=r"lives on meta.*\.cpu\(\)"):
        coterie.glu(elsewhere, elsewhere)


def test_back_ends_are_found_by_name_or_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.get("cpu") is dispatch.get("cpu")
    with pytest.raises(BackendUnavailableError, match="no back end 'tpu'; expected one of cpu, mlx, cuda"):
        backends.get("tpu")
    monkeypatch.setattr(dispatch, "_MODULES", {})
    monkeypatch.setitem(sys.modules, "coterie.backends.mlx", None)
    with pytest.raises(BackendUnavailableError, match="pip install 'coterie"):
        backends.get("mlx")
    reasons = backends.available()
    assert reasons["cpu"] is None
    assert "pip install" in str(reasons["mlx"])
    assert list(reasons) == ["cpu", "mlx", "cuda"]


def test_a_verb_that_a_back_end_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ready("numpy", "matvec")
    monkeypatch.delattr(dispatch.get("cpu"), "matvec")
    with pytest.raises(UnsupportedError, match="the cpu back end has no matvec"):
        coterie.matvec(np.ones((2, 2), np.float32), np.ones(2, np.float32))


def test_only_what_is_used_is_imported() -> None:
    code = (
        "import coterie, numpy as np, sys\n"
        "try: coterie.glu(np.ones(3, np.float32), np.ones(4, np.float32))\n"
        "except coterie.CoterieError: pass\n"
        "print([name for name in ('torch', 'mlx', 'numba') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_passing_a_door_costs_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoding step passes hundreds of doors; the verbs are replaced by ones that do nothing. The bound is
    generous.
    """
    ready("numpy", "moe")
    backend = dispatch.get("cpu")
    rng = np.random.default_rng(0)
    experts, x = experts_of(rng, "numpy", 8, 64, 32), floats(rng, (1, 64))
    packed, logits = pack(floats(rng, (8, 64)), Format.resolve("affine", 4, 64)), floats(rng, (1, 8))
    routing = Routing(np.zeros((1, 2), np.uint32), np.ones((1, 2), np.float32), 8)
    product, ids_and_weights = np.zeros((1, 8), np.float32), (routing.ids, routing.weights)
    monkeypatch.setattr(backend, "moe", lambda *_: x)
    monkeypatch.setattr(backend, "quantized_matmul", lambda *_: product)
    monkeypatch.setattr(backend, "glu", lambda *_: x)
    monkeypatch.setattr(backend, "route", lambda *_: ids_and_weights)
    for call in (
        lambda: coterie.moe(x, routing, experts),
        lambda: coterie.quantized_matmul(x, packed),
        lambda: coterie.glu(x, x, "silu"),
        lambda: coterie.route(logits, 2),
    ):
        times = []
        for _ in range(200):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        assert min(times) < 50e-6
