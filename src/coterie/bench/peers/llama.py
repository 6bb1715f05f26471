"""llama.cpp: the graph that it builds for a mixture layer (two indexed products, the gated activation, a third, a
weighted sum), in its own weight types: q4_0, q8_0, mxfp4; activations become int8 in blocks of 32.

Where its CPU part has row-interleaved kernels for the type, weights are stored so, as it does when it loads a model.
"""

from typing import Any, NamedTuple

import numpy as np

from coterie.arrays import bfloat16
from coterie.backends.cpu.isa import machine_features
from coterie.bench.entrants import Case, Entrant, RefusedError
from coterie.bench.peers import ggml
from coterie.bench.weights import Call, affine_scale, generator, random_bytes, weight_bytes

_BLOCK = 32
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class _Type(NamedTuple):
    """A weight type: its name and number, bytes of a block's scale and of its codes, rows that are interleaved."""

    name: str
    number: int
    scale_bytes: int
    code_bytes: int
    rows: int


_TYPES = {
    "4bit": _Type("q4_0", 2, 2, 16, 8),
    "8bit": _Type("q8_0", 8, 2, 32, 0),
    "mxfp4": _Type("mxfp4", 39, 1, 16, 8),
}


def entrants(case: Case) -> list[Entrant]:
    """One entrant, in the weight type that is nearest to the format."""
    ggml.library()
    if case.shape.hidden % _BLOCK or case.shape.intermediate % _BLOCK:
        raise RefusedError(f"its blocks are {_BLOCK} weights, which must divide the rows")
    return [_Graph(case, _TYPES[case.format_name])]


class _Graph(Entrant):
    def __init__(self, case: Case, kind: _Type) -> None:
        self._case, self._kind = case, kind
        rows_fit = kind.rows and case.shape.hidden % kind.rows == 0 and case.shape.intermediate % kind.rows == 0
        buffers = ggml.repacking_buffers() if rows_fit and "avx2" in machine_features() else None
        self.label = "llama.cpp"
        self.note = (
            f"{kind.name}, int8 activations, rows {'interleaved' if buffers else 'as in the file'}, weights of its own"
        )
        self.expert_bytes = weight_bytes(case.shape, 8 * (kind.scale_bytes + kind.code_bytes) / _BLOCK)
        self.n_layers = case.rotation(self.expert_bytes)
        self._g = ggml.library()
        self._backend = self._g.backend_cpu_init()
        self._g.backend_cpu_set_n_threads(self._backend, case.n_threads)
        self._checked: dict[tuple[str, int], np.ndarray] = {}
        self._owned: list[tuple[int, int]] = []
        self._layers = [self._layer(layer, buffers) for layer in range(self.n_layers)]
        self._graphs: dict[tuple[int, int], dict[str, Any]] = {}

    def __del__(self) -> None:
        for context, buffer in getattr(self, "_owned", []):
            self._g.backend_buffer_free(buffer)
            self._g.free(context)
        if getattr(self, "_backend", None):
            self._g.backend_free(self._backend)

    def _layer(self, layer: int, buffers: int | None) -> dict[str, int]:
        shape, rng = self._case.shape, generator(29, layer)
        sizes = dict.fromkeys(("gate", "up"), (shape.intermediate, shape.hidden))
        sizes["down"] = (shape.hidden, shape.intermediate)
        context = ggml.new_context()
        tensors = {
            name: self._g.new_tensor_3d(context, self._kind.number, n_inputs, n_rows, shape.n_experts)
            for name, (n_rows, n_inputs) in sizes.items()
        }
        kind = buffers or self._g.backend_cpu_buffer_type()
        self._owned.append((context, self._g.backend_alloc_ctx_tensors_from_buft(context, kind)))
        for name, (n_rows, n_inputs) in sizes.items():
            blocks = self._random_blocks(rng, n_rows, n_inputs)
            ggml.store(tensors[name], blocks)
            if layer == 0:
                for expert in np.unique(self._case.checked.routing.ids):
                    self._checked[name, int(expert)] = blocks[expert].copy()
        return tensors

    def _random_blocks(self, rng: np.random.Generator, n_rows: int, n_inputs: int) -> np.ndarray:
        """uint8 [E, rows, blocks, bytes]: each block is its scale (f16, or E8M0) and then its codes."""
        kind, n_blocks, n_experts = self._kind, n_inputs // _BLOCK, self._case.shape.n_experts
        blocks = random_bytes(rng, n_experts, n_rows, n_blocks, kind.scale_bytes + kind.code_bytes)
        table = np.abs(affine_scale(rng, self._case.fmt.bits, n_inputs, 4096))
        chosen = rng.integers(0, len(table), blocks.shape[:3], np.uint16)
        if kind.scale_bytes == 1:
            # The exponent byte of a bf16 number is its power of two, as E8M0 has it.
            blocks[..., 0] = ((table.astype(bfloat16).view(np.uint16) >> 7) & 255).astype(np.uint8)[chosen]
        else:
            blocks[..., :2] = table.astype(np.float16).view(np.uint8).reshape(-1, 2)[chosen]
        return blocks

    def prepare(self, call: Call) -> Any:
        return call.n_tokens, (call.x, call.routing.ids.astype(np.int32), call.routing.weights)

    def run(self, layer: int, prepared: Any) -> Any:
        n_tokens, arrays = prepared
        graph = self._graphs.get((layer, n_tokens))
        if graph is None:
            graph = self._graphs.setdefault((layer, n_tokens), self._build(layer, n_tokens))
        for tensor, array in zip(graph["inputs"], arrays, strict=True):
            ggml.store(tensor, array)
        status = self._g.backend_graph_compute(self._backend, graph["graph"])
        if status != 0:
            raise RuntimeError(f"ggml_backend_graph_compute returned {status}")
        return graph["result"], (n_tokens, self._case.shape.hidden)

    def _build(self, layer: int, n_tokens: int) -> dict[str, Any]:
        g, shape, weights = self._g, self._case.shape, self._layers[layer]
        context = ggml.new_context()
        x = g.new_tensor_3d(context, ggml.F32, shape.hidden, 1, n_tokens)
        ids = g.new_tensor_2d(context, ggml.I32, shape.top_k, n_tokens)
        mixing = g.new_tensor_3d(context, ggml.F32, 1, shape.top_k, n_tokens)
        gate, up = (g.mul_mat_id(context, weights[name], x, ids) for name in ("gate", "up"))
        down = g.mul_mat_id(context, weights["down"], self._gated(context, gate, up), ids)
        weighted, row = g.mul(context, down, mixing), 4 * shape.hidden
        parts = [
            g.view_2d(context, weighted, shape.hidden, n_tokens, row * shape.top_k, row * slot)
            for slot in range(shape.top_k)
        ]
        result = parts[0]
        for part in parts[1:]:
            result = g.add(context, result, part)
        graph = g.new_graph(context)
        g.build_forward_expand(graph, result)
        self._owned.append((context, g.backend_alloc_ctx_tensors(context, self._backend)))
        return {"graph": graph, "inputs": (x, ids, mixing), "result": result}

    def _gated(self, context: int, gate: int, up: int) -> int:
        activation = self._case.shape.activation
        if activation == "swiglu_clamped":
            return int(self._g.swiglu_oai(context, gate, up, 1.702, 7.0))
        split = self._g.geglu_split if activation == "gelu_tanh" else self._g.swiglu_split
        return int(split(context, gate, up))

    def output(self, result: Any) -> np.ndarray:
        return ggml.fetch(*result)

    def wanted(self) -> np.ndarray:
        return self._case.reference(self._decode)

    def _decode(self, name: str, expert: int, rows: slice) -> np.ndarray:
        blocks, kind = self._checked[name, expert][rows], self._kind
        codes = blocks[..., kind.scale_bytes :]
        if kind.name == "q8_0":
            values = codes.view(np.int8).astype(np.float64)
        else:
            # The low halves of a block's bytes are its first sixteen codes, the high halves the other sixteen.
            nibbles = np.concatenate([codes & 15, codes >> 4], -1)
            values = _E2M1[nibbles] if kind.name == "mxfp4" else nibbles.astype(np.float64) - 8
        if kind.scale_bytes == 1:
            scales = np.exp2(blocks[..., 0].astype(np.float64) - 127)
        else:
            scales = blocks[..., :2].copy().view(np.float16)[..., 0].astype(np.float64)
        return np.asarray((values * scales[..., None]).reshape(len(blocks), -1))
