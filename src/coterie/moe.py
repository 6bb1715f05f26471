"""The experts layer: every token through its chosen experts, outputs weighted and summed.

    route -> group -> gate, up -> activation -> down -> weighted sum

`route` is called apart, because families differ in what the router reads; `moe` is the rest. A back end may fuse it as
it likes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.arrays import ON_A_GPU, Array, Kind, as_numpy, common_kind, kind_of
from coterie.errors import ArgumentError
from coterie.formats import Packed, codec
from coterie.ops import checks
from coterie.ops.activations import check_activation, glu_reference
from coterie.ops.combine import SKIPPED_BELOW
from coterie.ops.forms import FORMS
from coterie.ops.routing import Routing, routed_ids

Projection = Packed | Array

PRECISIONS = ("default", "exact", "int8")
"""How activations are held while they are multiplied, by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """The weights of a layer's E experts, checked once, when the record is made.

    gate, up: [E, I, H] and down: [E, H, I], each a `Packed` or a plain array (f32, f16 or bf16); formats may differ.
    `up` of None means that `gate` is [E, 2I, H] and holds the gate rows of an expert first and then its up rows.
    Biases are floats: gate and up [E, I] (gate [E, 2I] where fused), down [E, H]; they are added before the activation
    and before the weighting.

    Strided arrays are copied once, here. `n_experts`, `hidden` (H) and `intermediate` (I) are
    the sizes found; `native` is the record as a back end takes it: the same one, or one of what it sees in the arrays'
    memory (NumPy arrays of PyTorch's and JAX's on the CPU, tensors of JAX's and CuPy's on a GPU).
    """

    gate: Projection
    up: Projection | None
    down: Projection
    activation: str = "silu"
    gate_bias: Array | None = field(default=None, kw_only=True)
    up_bias: Array | None = field(default=None, kw_only=True)
    down_bias: Array | None = field(default=None, kw_only=True)
    kind: Kind = field(init=False, repr=False)
    n_experts: int = field(init=False)
    hidden: int = field(init=False)
    intermediate: int = field(init=False)
    native: "Experts" = field(init=False, repr=False)
    derived: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_activation(self.activation)
        set_field = object.__setattr__
        set_field(self, "kind", _kind_of_experts(self))
        n_experts, hidden, intermediate = _sizes(self)
        set_field(self, "n_experts", n_experts)
        set_field(self, "hidden", hidden)
        set_field(self, "intermediate", intermediate)
        _check_biases(self)
        if not FORMS[self.kind].is_native:
            gate, up, down = _native_projections(self)
            set_field(self, "native", Experts(gate, up, down, self.activation, **_native_biases(self)))
            return
        for name, projection in zip(_PROJECTIONS, _native_projections(self), strict=True):
            set_field(self, name, projection)
        for name, bias in _native_biases(self).items():
            set_field(self, name, bias)
        set_field(self, "native", self)


def moe(x: Array, routing: Routing, experts: Experts, precision: str = "default") -> Array:
    """The weighted sum of the outputs of each token's experts.

    x: [..., H] in f32, f16 or bf16; routing: ids and weights [..., k]. Returns [..., H] in x's dtype; everything
    between is in f32. A slot whose |weight| is below 1e-10 is skipped: its infinity or NaN does not reach the sum. Ids
    that `route` has not made are checked to be in range, which for MLX waits for their values.

    precision: "exact" is activations and products in f32, exact to f32's rounding. The others round activations: of
    tokens and of hidden values, each group that meets weights of one scale becomes integers times an f32 scale;
    everything else is exact. "default" has integers of 16 bits, on the CPU, with AVX2 or AVX-512, where codes are small
    integers (affine with 1, 2, 4 or 8 bits, mxfp4, nvfp4), and is the same as "exact" elsewhere: the relative error of
    the result in L2 norm is 4e-5 to 7e-5 with normal activations, 1e-4 with heavy-tailed ones (Student's t, 3 degrees
    of freedom). "int8" has integers of 8 bits: the error is 1.0 to 1.6 % with normal activations (groups of 16 to 128;
    1.4 % with 64), 1.7 to 2.4 % with heavy-tailed ones. Where there is no kernel for it, `UnsupportedError` says so:
    for MLX arrays, without AVX2 or AVX-512, and for formats other than affine with 4 or 8 bits, mxfp4 and nvfp4.

    On a GPU activations and hidden values are sums of two bfloat16 numbers, which keep 16 of f32's 24 digits; where
    activations are bfloat16, "default" rounds hidden values and the outputs of experts to bfloat16 too.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision is {precision!r}, expected one of {', '.join(PRECISIONS)}", code="precision")
    kind, form = experts.kind, FORMS[experts.kind]
    same = kind_of(x) == kind_of(routing.ids) == kind_of(routing.weights) == kind
    if not same or kind in ON_A_GPU:
        common_kind(x=x, routing=routing.ids, weights=routing.weights, experts=_first_part(experts))
    dtype, shape = checks.float_dtype(x, "x"), tuple(x.shape)
    _check_shapes(shape, routing, experts)
    ids = routed_ids(routing, experts.n_experts, form)
    checks.float_dtype(routing.weights, "weights")
    k = ids.shape[-1]
    if 0 in shape or k == 0:
        return form.zeros(shape, dtype, x)
    weights = form.cast(form.dense(routing.weights), "float32")
    flat = Routing(form.rows(ids, k), form.rows(weights, k), experts.n_experts)
    tokens = form.rows(form.dense(x), shape[-1])
    return form.back(form.verb("moe")(tokens, flat, experts.native, precision), shape)


def moe_reference(x: Array, routing: Routing, experts: Experts) -> np.ndarray:
    """`moe` in float64: one expert at a time, its matrices dequantised exactly."""
    tokens = as_numpy(x).astype(np.float64).reshape(-1, experts.hidden)
    ids = as_numpy(routing.ids).reshape(len(tokens), routing.ids.shape[-1])
    weights = as_numpy(routing.weights).astype(np.float64).reshape(ids.shape)
    weights = np.where(np.abs(weights) < SKIPPED_BELOW, 0, weights)
    out = np.zeros_like(tokens)
    for expert in np.unique(ids[weights != 0]):
        rows, slots = np.nonzero((ids == expert) & (weights != 0))
        hidden = _project(tokens[rows], experts.gate, experts.gate_bias, expert)
        if experts.up is None:
            gate, up = np.split(hidden, 2, axis=-1)
        else:
            gate, up = hidden, _project(tokens[rows], experts.up, experts.up_bias, expert)
        output = _project(glu_reference(gate, up, experts.activation), experts.down, experts.down_bias, expert)
        np.add.at(out, rows, weights[rows, slots][:, None] * output)
    return out.reshape(tuple(x.shape))


_PROJECTIONS = ("gate", "up", "down")
_BIASES = ("gate_bias", "up_bias", "down_bias")


def _project(x: np.ndarray, projection: Projection, bias: Array | None, expert: int) -> np.ndarray:
    if isinstance(projection, Packed):
        parts = (projection.codes, projection.scales, projection.biases)
        chosen = [None if part is None else as_numpy(part)[expert] for part in parts]
        matrix = codec.dequantize_f64(chosen[0], chosen[1], chosen[2], projection.format)  # type: ignore[arg-type]
    else:
        matrix = as_numpy(projection)[expert].astype(np.float64)
    product: np.ndarray = x @ matrix.T
    return product if bias is None else product + as_numpy(bias)[expert].astype(np.float64)


def _kind_of_experts(experts: Experts) -> Kind:
    arrays: dict[str, Any] = {}
    for name in _PROJECTIONS:
        projection = getattr(experts, name)
        arrays[name] = projection.codes if isinstance(projection, Packed) else projection
    return common_kind(**arrays, **{name: getattr(experts, name) for name in _BIASES})


def _first_part(experts: Experts) -> Array:
    """An array that stands for all of them, which have been compared already."""
    return experts.gate.codes if isinstance(experts.gate, Packed) else experts.gate


def _sizes(experts: Experts) -> tuple[int, int, int]:
    """(E, H, I) of projections that fit together."""
    shapes = {name: _shape(getattr(experts, name), name) for name in _PROJECTIONS if getattr(experts, name) is not None}
    n_experts, hidden, intermediate = shapes["down"]
    gate_rows = intermediate * (2 if experts.up is None else 1)
    expected = {"gate": (n_experts, gate_rows, hidden), "up": (n_experts, intermediate, hidden)}
    for name in shapes.keys() - {"down"}:
        if shapes[name] != expected[name]:
            raise checks.shape_error(
                f"down is {list(shapes['down'])}, so {name} must be {list(expected[name])}"
                f"{' (gate and up rows in one)' if experts.up is None else ''}, found {list(shapes[name])}"
            )
    if 0 in shapes["down"]:
        raise checks.shape_error(f"down is {list(shapes['down'])}, expected no axis of length zero")
    return n_experts, hidden, intermediate


def _shape(projection: Projection, name: str) -> tuple[int, ...]:
    shape = tuple(projection.shape)
    if not isinstance(projection, Packed):
        checks.float_dtype(projection, name)
    if len(shape) != 3:
        raise checks.shape_error(f"{name} is {list(shape)}, expected [E, rows, columns]: one matrix for each expert")
    return shape


def _check_biases(experts: Experts) -> None:
    rows = experts.intermediate * (2 if experts.up is None else 1)
    if experts.up is None and experts.up_bias is not None:
        raise ArgumentError(
            "up_bias was given without up; where gate holds both, gate_bias [E, 2I] does too", code="experts"
        )
    for name, length in zip(_BIASES, (rows, experts.intermediate, experts.hidden), strict=True):
        bias = getattr(experts, name)
        if bias is None:
            continue
        checks.float_dtype(bias, name)
        if tuple(bias.shape) != (experts.n_experts, length):
            raise checks.shape_error(f"{name} is {list(bias.shape)}, expected {[experts.n_experts, length]}")


def _native_projections(experts: Experts) -> list[Any]:
    form = FORMS[experts.kind]

    def as_native(projection: Projection | None) -> Any:
        if isinstance(projection, Packed):
            return form.packed(projection)
        return None if projection is None else form.weight(projection)

    return [as_native(getattr(experts, name)) for name in _PROJECTIONS]


def _native_biases(experts: Experts) -> dict[str, Any]:
    """Biases in f32: they are small, and every back end adds them to f32 sums."""
    form = FORMS[experts.kind]
    given = {name: getattr(experts, name) for name in _BIASES}
    return {name: None if bias is None else form.cast(form.dense(bias), "float32") for name, bias in given.items()}


def _check_shapes(shape: tuple[int, ...], routing: Routing, experts: Experts) -> None:
    ids_shape, weights_shape = tuple(routing.ids.shape), tuple(routing.weights.shape)
    if not shape or shape[-1] != experts.hidden:
        raise checks.shape_error(f"x is {list(shape)}, expected [..., {experts.hidden}], as wide as the experts")
    if ids_shape != weights_shape or len(ids_shape) != len(shape) or ids_shape[:-1] != shape[:-1]:
        raise checks.shape_error(
            f"x is {list(shape)}, ids are {list(ids_shape)} and weights {list(weights_shape)}, "
            "expected [..., H] and twice [..., k]"
        )
