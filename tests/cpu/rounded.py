"""What kernels with rounded activations compute, in NumPy, and their products called by hand."""

import ctypes

import numpy as np

from coterie.backends.cpu import isa, pool
from coterie.backends.cpu import product as p
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.kernels.int8_round import SMALLEST_SCALED
from coterie.backends.cpu.matrix import matrix_of
from coterie.formats import Format, Packed
from coterie.moe import Experts
from coterie.ops.activations import glu_reference
from cpu.cases import exact
from tolerance import bound

LARGEST = {"int8": 127, "default": 32639}
"""The largest integer by precision."""
FORMATS = [Format.resolve("affine", bits, group) for bits in (4, 8) for group in (32, 64, 128)]
FORMATS += [Format.resolve("mxfp4"), Format.resolve("nvfp4")]
NARROW = [Format.resolve("affine", bits, group) for bits in (1, 2) for group in (32, 128)]
SETS = [kind.name for kind in isa.ISAS if isa.runs_here(kind) and kind.multiplies_integers]


def rounded(x: np.ndarray, group: int, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """Integers [..., K / group, group] and scales f32 [..., K / group, 1], operation by operation as the kernels'."""
    groups = x.astype(np.float32).reshape(*x.shape[:-1], -1, group)
    largest, top = np.abs(groups).max(-1, keepdims=True), np.float32(LARGEST[precision])
    # Activations of 16 bits multiply by the reciprocal of the largest integer.
    step = largest / top if precision == "int8" else largest * np.float32(1 / LARGEST[precision])
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(largest <= SMALLEST_SCALED, 0, top / largest).astype(np.float32)
    scale = np.where(largest <= SMALLEST_SCALED, 0, step).astype(np.float32)
    return np.rint(groups * inverse).astype(np.int32), scale


def as_used(x: np.ndarray, group: int, precision: str) -> np.ndarray:
    """What the activations are after rounding, in float64."""
    integers, scale = rounded(x, group, precision)
    return (integers.astype(np.float64) * scale).reshape(x.shape)


def prepare(x: np.ndarray, packed: Packed, precision: str) -> np.ndarray:
    """The prepared rows of activations, uint8 [T, bytes], made by the job in the pool."""
    preparation = matrix_of(packed, precision=precision).preparation
    rows = np.full((len(x), preparation.row_bytes), 0xFF, np.uint8)
    current = pool.get_pool()
    with current.lock:
        current.run(preparation.phase(current, x, pool.address_of(rows)))
    return rows


def multiply(x: np.ndarray, packed: Packed, precision: str, prepared: np.ndarray | None = None) -> np.ndarray:
    """The product kernel's own result for x [T, K] and packed [N, K]; its scratch and result hold NaNs before."""
    matrix = matrix_of(packed, precision=precision)
    prepared = prepare(x, packed, precision) if prepared is None else prepared
    inputs = np.array([pool.address_of(row) for row in prepared], np.int64)
    n_rows = packed.shape[0]
    out = np.full((len(x), p.MAX_ROWS), np.nan, np.float32)
    scratch = np.full(s.thread_bytes(isa.current()) + 64, 0xFF, np.uint8)
    call = np.zeros(p.CALL_WORDS, np.int64)
    biases = 0 if packed.biases is None else pool.address_of(packed.biases)
    call[: p.SUMS] = [
        pool.address_of(packed.codes), packed.codes.strides[0], pool.address_of(packed.scales),
        packed.scales.strides[0], biases, packed.shape[1], n_rows, pool.address_of(inputs), len(x),
        pool.address_of(out), out.shape[1], pool.aligned(pool.address_of(scratch)),
    ]  # fmt: skip
    ctypes.CFUNCTYPE(None, ctypes.c_int64)(int(matrix.words[0]))(pool.address_of(call))
    return out[:, :n_rows]


def modelled(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, experts: Experts, precision: str) -> np.ndarray:
    """The layer in float64 but for the two roundings."""
    tokens = as_used(x, experts.gate.format.group_size, precision)
    gate, up, down = (exact(projection) for projection in (experts.gate, experts.up, experts.down))
    out = np.zeros(x.shape)
    for token, slot in np.ndindex(ids.shape):
        expert = ids[token, slot]
        hidden = glu_reference(tokens[token] @ gate[expert].T, tokens[token] @ up[expert].T, experts.activation)
        used = as_used(hidden.astype(np.float32)[None], experts.down.format.group_size, precision)[0]
        out[token] += weights[token, slot].astype(np.float64) * (used @ down[expert].T)
    return out


def flips(depth: int, precision: str) -> float:
    """A hidden value within f32's error of the middle between two integers may be rounded either way: of values with n
    steps and errors of 4 * eps * sqrt(K), a share of n * 4 * eps * sqrt(K), each wrong by a step, 1/n of the largest.
    """
    steps = LARGEST[precision]
    share = min(1.0, steps * bound("float32", depth))
    return 4 * share**0.5 / steps + bound("float32", depth)
