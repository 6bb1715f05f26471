"""`experts_implementation="coterie"`: the experts of an unquantised model of transformers on Coterie's kernels."""

from typing import Any
from weakref import WeakKeyDictionary

from transformers.integrations import moe as transformers_moe

from coterie.errors import UnsupportedError
from coterie.integrations.transformers.gradient import forward_only
from coterie.moe import Experts, moe
from coterie.ops import Routing
from coterie.ops.activations import CLAMP, SIGMOID_SLOPE

NAME = "coterie"
"""What to pass as `experts_implementation`."""

_ACTIVATIONS = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "ReLU": "relu",
}
_RECORDS: WeakKeyDictionary[Any, tuple[tuple[Any, ...], Experts]] = WeakKeyDictionary()


def register_experts() -> None:
    """Make `experts_implementation="coterie"` known to transformers."""
    transformers_moe.ExpertsInterface.register(NAME, experts_forward)


def experts_forward(module: Any, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
    """The experts of `module`: hidden_states [T, H], top_k_index and top_k_weights [T, k]; returns [T, H].

    Weights that lie [E, rows, columns] are used where they are; gpt-oss's, transposed and with gate and up in turn,
    are copied once. `UnsupportedError` for experts that Coterie has no kernel for, and for a backward pass.
    """
    experts = _record(module)
    routing = Routing(top_k_index, top_k_weights, None)
    weights = (module.gate_up_proj, module.down_proj)
    return forward_only(lambda: moe(hidden_states, routing, experts), hidden_states, top_k_weights, *weights)


def activation_of(module: Any) -> str:
    """The activation of a module of experts by Coterie's name; `UnsupportedError` for one that it does not have."""
    if getattr(module, "limit", None) == CLAMP and getattr(module, "alpha", None) == SIGMOID_SLOPE:
        return "swiglu_clamped"
    act_fn = getattr(module, "act_fn", None)
    name = _ACTIVATIONS.get(type(act_fn).__name__)
    if name is None or type(module)._apply_gate is not transformers_moe._default_apply_gate:
        raise UnsupportedError(
            f"{type(module).__name__} gates with {type(act_fn).__name__ if act_fn else 'a function of its own'}, "
            f"expected one of {', '.join(sorted(set(_ACTIVATIONS)))} times the up half, or gpt-oss's: use another "
            "experts_implementation",
            code="activation",
        )
    return name


def _record(module: Any) -> Experts:
    """The module's weights as Coterie takes them; made again if they were replaced or changed in place."""
    names = ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")
    tensors = [getattr(module, name, None) for name in names]
    key = tuple(None if tensor is None else _identity(tensor) for tensor in tensors)
    found = _RECORDS.get(module)
    if found is None or found[0] != key:
        found = (key, _experts(module, *tensors))
        _RECORDS[module] = found
    return found[1]


def _identity(tensor: Any) -> tuple[Any, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device


def _experts(module: Any, gate_up: Any, down: Any, gate_up_bias: Any, down_bias: Any) -> Experts:
    _refuse_others(module)
    activation = activation_of(module)
    if module.is_transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    if module.is_concatenated:
        return Experts(gate_up, None, down, activation, gate_bias=gate_up_bias, down_bias=down_bias)
    biases = {} if gate_up_bias is None else {"gate_bias": gate_up_bias[:, ::2], "up_bias": gate_up_bias[:, 1::2]}
    return Experts(gate_up[:, ::2], gate_up[:, 1::2], down, activation, down_bias=down_bias, **biases)


def _refuse_others(module: Any) -> None:
    reasons = {
        "without a gate": not module.has_gate,
        "with a norm after each expert": module.has_post_expert_norm,
        "spread over processes": module._is_expert_parallel,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise UnsupportedError(
            f"{type(module).__name__} has experts {' and '.join(found)}; Coterie computes gated experts of one "
            "process: use another experts_implementation",
            code="experts_kind",
        )
