"""What this library makes of the weights of a module of mlx-lm: made once, and anew where the weights are others."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from coterie.arrays import dtype_name
from coterie.formats import Format, Packed
from coterie.integrations.mlx_lm.views import lies_dense, weight_view
from coterie.moe import Experts

PARTS = ("weight", "scales", "biases", "bias")
_FLOATS = ("float32", "float16", "bfloat16")


class State:
    """What hangs at a module that was swapped. Copies and pickles of the module start without a record.

    most_rows: how many positions at a time are computed at once; None for any number.
    """

    __slots__ = ("most_rows", "parts", "record")

    def __init__(self, most_rows: int | None = None) -> None:
        self.most_rows = most_rows
        self.parts: tuple[Any, ...] = ()
        self.record: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return State, (self.most_rows,)

    def of(self, parts: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The record of these very arrays: the one at hand, or what `make` makes."""
        known = self.parts
        if len(known) != len(parts) or any(one is not other for one, other in zip(known, parts, strict=True)):
            self.record, self.parts = make(), parts
        return self.record


def parts_of(*modules: Any) -> tuple[Any, ...]:
    """The weights of some modules."""
    return tuple(module.get(name) for module in modules for name in PARTS)


def format_of(module: Any) -> Format:
    """The format of a quantised module; `ArgumentError` or `UnsupportedError` for one that is not known."""
    return Format.resolve(module.mode, module.bits, module.group_size)


def packed_on_host(module: Any) -> Packed:
    """The weights of a quantised module, where they lie."""
    return _packed(module, _dense_view(module))


def experts_on_host(module: Any, activation: str) -> Experts:
    """The weights of a `SwitchGLU`, where they lie; biases of its projections are copied, as f32."""
    return _experts(module, activation, _dense_view)


def experts_on_device(module: Any, activation: str) -> Experts:
    """The weights of a `SwitchGLU` as MLX arrays."""
    return _experts(module, activation, lambda _: lambda array: array)


def result_dtype(x: mx.array, *modules: Any) -> mx.Dtype:
    """What MLX makes of the dtypes of x and the floats among the weights: the common one, and f32 where they differ."""
    found = {part.dtype for part in parts_of(*modules) if part is not None and dtype_name(part) in _FLOATS}
    return x.dtype if found <= {x.dtype} else mx.float32


def _experts(module: Any, activation: str, hold_for: Callable[[Any], Callable[[Any], Any]]) -> Experts:
    def projection(linear: Any) -> Any:
        hold = hold_for(linear)
        return _packed(linear, hold) if "scales" in linear else hold(linear["weight"])

    projections = (module.gate_proj, module.up_proj, module.down_proj)
    biases = [hold_for(linear)(linear["bias"]) if "bias" in linear else None for linear in projections]
    gate, up, down = (projection(linear) for linear in projections)
    return Experts(gate, up, down, activation, gate_bias=biases[0], up_bias=biases[1], down_bias=biases[2])


def _packed(module: Any, hold: Callable[[Any], Any]) -> Packed:
    parts = [module.get(name) for name in ("weight", "scales", "biases")]
    held = [None if part is None else hold(part) for part in parts]
    return Packed(held[0], held[1], held[2], module.bits, module.group_size, module.mode)


def _dense_view(module: Any) -> Callable[[Any], Any]:
    """Views of a module's weights. One that lies in strides is made dense in the module first, or it would be held
    twice.
    """

    def hold(array: Any) -> Any:
        if lies_dense(array):
            return weight_view(array)
        name = next(name for name in PARTS if module.get(name) is array)
        module[name] = mx.contiguous(array)
        mx.eval(module[name])
        return weight_view(module[name])

    return hold
