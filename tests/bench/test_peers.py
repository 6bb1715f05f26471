"""Each peer that is installed computes the layer that it is said to compute: its error is that of its arithmetic."""

from importlib.util import find_spec

import pytest

from coterie.bench.accuracy import worst_row
from coterie.bench.entrants import Case, RefusedError
from coterie.bench.peers import PEERS
from coterie.bench.shapes import FORMATS, SHAPES, Shape
from coterie.bench.weights import calls

MODULES = {"mlx": "mlx", "torch": "torch", "onnxruntime": "onnxruntime", "llama.cpp": "llama_cpp"}

INT8, BF16, F32 = 3e-2, 1e-2, 1e-5
"""Errors of activations held in 8 bits, in bf16 (two roundings, eps 2^-8 each, amplified by the gate), and in f32."""

EXPECTED = {"mlx": F32, "torch int4": BF16, "onnxruntime acc0": F32, "onnxruntime acc4": INT8, "llama.cpp": INT8}


@pytest.mark.slow
@pytest.mark.parametrize("activation", sorted({shape.activation for shape in SHAPES.values()}))
@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("peer", MODULES)
def test_a_peer_computes_the_layer(peer: str, format_name: str, activation: str) -> None:
    if find_spec(MODULES[peer]) is None or (peer == "onnxruntime" and find_spec("onnx") is None):
        pytest.skip(f"{MODULES[peer]} is not installed")
    case = Case(Shape("tiny", "Tiny", 256, 128, 8, 2, activation), format_name, FORMATS[format_name], 1, 1 << 21, 1024)
    try:
        entrants = list(PEERS[peer](case))
    except RefusedError as refusal:
        pytest.skip(str(refusal))
    for n_tokens in (1, 5):
        call = next(calls(case.shape, n_tokens, 1, case.checked))
        for entrant in entrants:
            for layer in range(entrant.n_layers):
                result = entrant.run(layer, entrant.prepare(call))
            result = entrant.run(0, entrant.prepare(call))
            wanted = entrant.wanted()
            assert wanted is not None
            error = worst_row(entrant.output(result), wanted)
            assert EXPECTED[entrant.label] / 1000 < error < EXPECTED[entrant.label], entrant.label
