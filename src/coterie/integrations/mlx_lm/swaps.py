"""Modules of mlx-lm whose products are this library's. Each has the parameters and the interface of the one it stands
for: only the class of the module changes, and back.

On the CPU a call computes at once: it waits for its input, and the kernels read input and weights where MLX holds them.
On a GPU of Apple's everything stays lazy. Where neither fits (training, inside `mx.compile`, an empty input) the
module does what it always did.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.activations import SwigluOAI
from mlx_lm.models.gemma4_text import GeGLU
from mlx_lm.models.mla import QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwiGLU, SwitchGLU, SwitchLinear

from coterie.arrays import dtype_name
from coterie.errors import CoterieError, UnsupportedError
from coterie.formats import Packed
from coterie.integrations.mlx_lm import records
from coterie.integrations.mlx_lm.views import computed, view
from coterie.moe import Experts, moe
from coterie.ops.activations import CLAMP, SIGMOID_SLOPE
from coterie.ops.products import gather_qmm, quantized_matmul
from coterie.ops.routing import Routing

_FLOATS = ("float32", "float16", "bfloat16")
_FEW_ROWS = 64
"""Routed rows below which our kernels are asked on a GPU; from there mlx-lm sorts, and MLX's own are made for it."""


def _place(module: Any, x: mx.array) -> Literal["cpu", "gpu"] | None:
    """Where our kernels compute a call; None where the module's own way is taken."""
    if module.training or x.size == 0 or dtype_name(x) not in _FLOATS:
        return None
    if mx.default_device().type == mx.cpu:
        return "cpu"
    return "gpu" if _metal() else None


@cache
def _metal() -> bool:
    return bool(mx.metal.is_available())


def _is_float(array: mx.array | None) -> bool:
    return array is not None and dtype_name(array) in _FLOATS


def _handed_over(outputs: np.ndarray, *inputs: mx.array) -> mx.array:
    """What was computed outside of MLX, as an MLX array; a gradient with respect to an input is refused."""
    result: mx.array = _no_gradient(mx.array(outputs), *inputs)  # type: ignore[assignment]
    return result


@mx.custom_function
def _no_gradient(outputs: mx.array, *inputs: mx.array) -> mx.array:
    del inputs
    return outputs


def _refuse(*_: Any) -> None:
    raise UnsupportedError(
        "a gradient was asked for through a model that is patched and in evaluation mode, where the CPU kernels "
        "compute outside of MLX; expected model.train(), or unpatch(model) first",
        code="gradient",
    )


_no_gradient.vjp(_refuse)
_no_gradient.jvp(_refuse)


class CoterieSwitchGLU(SwitchGLU):  # type: ignore[misc]
    """Gate, up, activation and down of each token's experts in one go: x [..., H], ids [..., k] to [..., k, H]."""

    stands_for = SwitchGLU

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        """The outputs of each token's experts, not weighted yet."""
        place = None if indices.size == 0 else _place(self, x)
        if place == "cpu" and computed(x, indices):
            experts = self._experts(records.experts_on_host)
            if experts is not None:
                return self._at_once(x, indices, experts)
        if place == "gpu" and indices.size < _FEW_ROWS and "scales" in self.gate_proj:
            experts = self._experts(records.experts_on_device)
            if experts is not None:
                return self._lazily(x, indices, experts)
        return super().__call__(x, indices)  # type: ignore[no-any-return]

    def _experts(self, make: Callable[[Any, str], Experts]) -> Experts | None:
        """Our record of the weights; None for a module that has become one that we do not stand for."""
        parts = records.parts_of(self.gate_proj, self.up_proj, self.down_proj)

        def made() -> Experts | None:
            activation = activation_of(self)
            return None if activation is None or why_not_experts(self) else make(self, activation)

        experts: Experts | None = self._coterie.of((*parts, self.activation, make), made)
        return experts

    def _at_once(self, x: mx.array, indices: mx.array, experts: Experts) -> mx.array:
        # Each choice of an expert is a token of its own with one expert and the weight 1: its row of the sum is alone.
        ids = view(indices)
        rows = np.repeat(view(self._cast(x)).reshape(-1, x.shape[-1]), ids.shape[-1], 0)
        routing = Routing(ids.reshape(-1, 1), np.ones((ids.size, 1), np.float32))
        # Activations of 16 bits are held to a finer grid than those of bfloat16; those of f32 stay what they are.
        precision = "exact" if rows.dtype == np.float32 else "default"
        outputs = moe(rows, routing, experts, precision).reshape(*ids.shape, -1)
        plain = [part for part in records.parts_of(self.gate_proj, self.up_proj, self.down_proj) if _is_float(part)]
        return _handed_over(outputs, x, *plain)

    def _lazily(self, x: mx.array, indices: mx.array, experts: Experts) -> mx.array:
        rows = mx.repeat(self._cast(x).reshape(-1, x.shape[-1]), indices.shape[-1], axis=0)
        ids = mx.stop_gradient(indices).astype(mx.uint32).reshape(-1, 1)
        outputs = moe(rows, Routing(ids, mx.ones(ids.shape), experts.n_experts), experts)
        return outputs.reshape(*indices.shape, x.shape[-1])  # type: ignore[no-any-return]

    def _cast(self, x: mx.array) -> mx.array:
        """x in the dtype of the result."""
        return x.astype(records.result_dtype(x, self.gate_proj, self.up_proj, self.down_proj))


class _OnTheCPU(nn.Module):  # type: ignore[misc]
    """What the modules with one packed weight share: they are swapped on the CPU only."""

    def _packed_for(self, x: mx.array) -> Packed | None:
        """The weight, if our kernels are to multiply x by it now."""
        most = self._coterie.most_rows
        if most is not None and x.ndim > 1 and x.shape[-2] > most:
            return None
        if _place(self, x) != "cpu" or not computed(x):
            return None
        packed: Packed = self._coterie.of(records.parts_of(self), lambda: records.packed_on_host(self))
        return packed


class CoterieQuantizedLinear(_OnTheCPU, nn.QuantizedLinear):  # type: ignore[misc]
    """x [..., K] to [..., N]."""

    stands_for = nn.QuantizedLinear

    def __call__(self, x: mx.array) -> mx.array:
        """The product, plus the bias."""
        packed = self._packed_for(x)
        if packed is None:
            return super().__call__(x)  # type: ignore[no-any-return]
        product = _handed_over(quantized_matmul(view(x), packed), x)
        return product + self["bias"] if "bias" in self else product


class CoterieQuantizedEmbedding(_OnTheCPU, nn.QuantizedEmbedding):  # type: ignore[misc]
    """An embedding that is the head, too."""

    stands_for = nn.QuantizedEmbedding

    def as_linear(self, x: mx.array) -> mx.array:
        """x [..., K] times the embeddings, transposed: [..., V]."""
        packed = self._packed_for(x)
        return super().as_linear(x) if packed is None else _handed_over(quantized_matmul(view(x), packed), x)


class CoterieQuantizedMultiLinear(_OnTheCPU, QuantizedMultiLinear):  # type: ignore[misc]
    """One matrix for each attention head, either way round."""

    stands_for = QuantizedMultiLinear

    def __call__(self, x: mx.array, transpose: bool = True) -> mx.array:
        """x [..., heads, L, K] to [..., heads, L, N]."""
        packed = self._packed_for(x)
        if packed is None:
            return super().__call__(x, transpose)  # type: ignore[no-any-return]
        return _handed_over(quantized_matmul(view(x), packed, transpose=transpose), x)


class CoterieQuantizedSwitchLinear(_OnTheCPU, QuantizedSwitchLinear):  # type: ignore[misc]
    """One matrix of each expert, for layers of experts that `CoterieSwitchGLU` does not stand for."""

    stands_for = QuantizedSwitchLinear

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """x [..., M, K] times the matrices of the ids."""
        packed = self._packed_for(x)
        if packed is None or not computed(indices):
            return super().__call__(x, indices, sorted_indices)  # type: ignore[no-any-return]
        outputs = gather_qmm(view(x), packed, rhs_indices=view(indices), sorted_indices=sorted_indices)
        product = _handed_over(outputs, x)
        return product + mx.expand_dims(self["bias"][indices], -2) if "bias" in self else product


SWAPS = {
    swap.stands_for: swap
    for swap in (
        CoterieSwitchGLU,
        CoterieQuantizedLinear,
        CoterieQuantizedEmbedding,
        CoterieQuantizedMultiLinear,
        CoterieQuantizedSwitchLinear,
    )
}


def activation_of(module: Any) -> str | None:
    """Our name of a `SwitchGLU`'s activation; None for one that we do not have."""
    activation = module.activation
    if type(activation) is SwigluOAI:
        same = activation._alpha == SIGMOID_SLOPE and activation._limit == CLAMP
        return "swiglu_clamped" if same else None
    return {SwiGLU: "silu", GeGLU: "gelu_tanh"}.get(type(activation))


def why_not_experts(module: Any) -> str | None:
    """Why a `SwitchGLU` is left alone; None where it is not."""
    if activation_of(module) is None:
        return f"its activation {type(module.activation).__name__} is none of ours"
    for name in ("gate_proj", "up_proj", "down_proj"):
        linear = module[name]
        if type(linear) is QuantizedSwitchLinear:
            reason = why_not_packed(linear)
        elif type(linear) is SwitchLinear:
            known = dtype_name(linear["weight"]) in _FLOATS
            reason = None if known else f"its weights are {dtype_name(linear['weight'])}"
        else:
            reason = f"its {name} is a {type(linear).__name__}"
        if reason is not None:
            return reason
    return None


def why_not_packed(module: Any) -> str | None:
    """Why a module with a packed weight is left alone; None where it is not."""
    if getattr(module, "global_scale", None) is not None:
        return "its weights have a scale for the whole matrix"
    try:
        records.format_of(module)
    except CoterieError as refusal:
        return str(refusal)
    return None
