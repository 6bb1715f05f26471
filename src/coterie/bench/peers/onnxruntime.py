"""ONNX Runtime: its QMoE operator in a model of one node, at accuracy level 0 (f32 activations, 4 bits only) and 4
(int8 activations).

Weights are random bytes in the operator's layout, low nibble first, symmetric around half of the range, f32 scales for
blocks of 64. It does the router's top-k itself, from scores that choose the given experts; that part is small.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from coterie.bench.entrants import Case, Entrant, RefusedError
from coterie.bench.weights import Call, affine_scale, generator, random_bytes, weight_bytes

_BLOCK = 64
_STAND_IN = "given"


def entrants(case: Case) -> list[Entrant]:
    """One entrant for each accuracy level that the format has."""
    if case.format_name not in ("4bit", "8bit"):
        raise RefusedError("QMoE on the CPU has 4-bit and 8-bit integer weights only")
    levels = (4, 0) if case.fmt.bits == 4 else (4,)
    weights = _Weights(case)
    return [_QMoE(case, weights, level) for level in levels]


class _Weights:
    """One set of layers for all accuracy levels."""

    def __init__(self, case: Case) -> None:
        shape, bits = case.shape, case.fmt.bits
        self.expert_bytes = weight_bytes(shape, bits + 32 / _BLOCK)
        # A session keeps a packed copy beside the given weights.
        self.n_layers = min(2, case.rotation(2 * self.expert_bytes))
        self.layers = []
        for layer in range(self.n_layers):
            rng = generator(17, layer)
            parts = {}
            for name, n_rows, n_inputs in (
                ("fc1", 2 * shape.intermediate, shape.hidden),
                ("fc2", shape.hidden, shape.intermediate),
            ):
                scales = np.abs(affine_scale(rng, bits, n_inputs, shape.n_experts * n_rows * (n_inputs // _BLOCK)))
                parts[f"{name}_w"] = random_bytes(rng, shape.n_experts, n_rows, n_inputs * bits // 8)
                parts[f"{name}_s"] = scales.reshape(shape.n_experts, n_rows, n_inputs // _BLOCK)
            self.layers.append(parts)

    def decode(self, case: Case, name: str, expert: int, rows: slice) -> np.ndarray:
        """The exact weights; rows of gate and up alternate."""
        matrix = "fc2" if name == "down" else "fc1"
        start, step = {"gate": (0, 2), "up": (1, 2), "down": (0, 1)}[name]
        chosen = slice(start + step * rows.start, start + step * rows.stop, step)
        codes, scales = (self.layers[0][f"{matrix}_{part}"][expert, chosen] for part in "ws")
        if case.fmt.bits == 4:
            codes = np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1)
        half = 1 << (case.fmt.bits - 1)
        return np.asarray((codes.astype(np.float64) - half) * np.repeat(scales.astype(np.float64), _BLOCK, -1))


class _QMoE(Entrant):
    def __init__(self, case: Case, weights: _Weights, level: int) -> None:
        self._case, self._weights = case, weights
        self.label = f"onnxruntime acc{level}"
        geglu = case.shape.activation == "gelu_tanh"
        self.note = f"{'int8' if level == 4 else 'f32'} activations, weights of its own" + (
            ", SwiGLU for want of GEGLU" if geglu else ""
        )
        self._activation = "silu" if geglu else case.shape.activation
        self.expert_bytes, self.n_layers = weights.expert_bytes, weights.n_layers
        self._sessions = [_session(case, layer, level) for layer in weights.layers]

    def prepare(self, call: Call) -> dict[str, np.ndarray]:
        scores = np.full((call.n_tokens, self._case.shape.n_experts), -8.0, np.float32)
        mixing = np.zeros_like(scores)
        np.put_along_axis(scores, call.routing.ids.astype(np.int64), 1.0, -1)
        np.put_along_axis(mixing, call.routing.ids.astype(np.int64), call.routing.weights, -1)
        return {"x": call.x, "scores": scores, "mixing": mixing}

    def run(self, layer: int, prepared: dict[str, np.ndarray]) -> Any:
        return self._sessions[layer].run(None, prepared)[0]

    def output(self, result: Any) -> np.ndarray:
        return np.asarray(result)

    def wanted(self) -> np.ndarray:
        from coterie.bench.accuracy import reference

        def decode(name: str, expert: int, rows: slice) -> np.ndarray:
            return self._weights.decode(self._case, name, expert, rows)

        return reference(self._case.checked, self._case.shape.intermediate, self._activation, decode)


def _session(case: Case, weights: dict[str, np.ndarray], level: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = case.n_threads, 3
    # Its threads would go on spinning into the next entrant's time.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    kept = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    for name, value in zip(weights, kept, strict=True):
        options.add_initializer(name, value)
    with TemporaryDirectory() as folder:
        # The session wants the file that stands for the weights to be there, and reads nothing of it.
        Path(folder, _STAND_IN).touch()
        path = Path(folder, "layer.onnx")
        path.write_bytes(_model(case, weights, level).SerializeToString())
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.kept = kept
    return session


def _model(case: Case, weights: dict[str, np.ndarray], level: int) -> Any:
    clamped = case.shape.activation == "swiglu_clamped"
    attributes: dict[str, Any] = {
        "k": case.shape.top_k,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.702 if clamped else 1.0,
        "activation_beta": 1.0 if clamped else 0.0,
        "normalize_routing_weights": 0,
        "expert_weight_bits": case.fmt.bits,
        "block_size": _BLOCK,
        "accuracy_level": level,
    }
    if clamped:
        attributes["swiglu_limit"] = 7.0
    inputs = ["x", "scores", "fc1_w", "fc1_s", "", "fc2_w", "fc2_s", *[""] * 7, "mixing"]
    node = helper.make_node("QMoE", inputs, ["y"], domain="com.microsoft", **attributes)

    def rows(name: str, width: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", width])

    n_experts, hidden = case.shape.n_experts, case.shape.hidden
    graph = helper.make_graph(
        [node], "layer", [rows("x", hidden), rows("scores", n_experts), rows("mixing", n_experts)], [rows("y", hidden)]
    )
    for name, array in weights.items():
        # Only the name, type and size: the values come with the session's options, past protobuf's limit of 2 GB.
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=_STAND_IN)
        graph.initializer.append(tensor)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = min(model.ir_version, onnx.IR_VERSION, 10)
    return model
