"""Peers that the user brings: a Python file with a function `prepare`, which is given each layer's weights."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from coterie.bench.cuda.entrants import Case, Entrant, Layer
from coterie.bench.entrants import RefusedError
from coterie.errors import ArgumentError
from coterie.formats import Packed
from coterie.moe import Experts


@dataclass(frozen=True, slots=True, eq=False)
class PeerLayer:
    """What `prepare(layer)` of a peer module is given: the weights of a layer on the device, and what they mean.

    gate, up: [E, I, H] and down: [E, H, I], each a `Packed` (codes uint32, scales, biases, bits, group_size, mode), or
    a bf16 tensor where `format` is "bf16". It returns a function of x bf16 [T, H] and router logits f32 [T, E], which
    gives [T, H]; one that does not wait for the device is recorded as a CUDA graph. What `prepare` raises is the reason
    why the module does not take part. The module may have a `NAME`, and a `NOTE` for the reader of the table.
    """

    format: str
    gate: Packed | torch.Tensor
    up: Packed | torch.Tensor
    down: Packed | torch.Tensor
    activation: str
    top_k: int


def load_peer(path: Path) -> ModuleType:
    """The module in the file `path`; `ArgumentError` where there is none that has `prepare`."""
    expected = "expected a Python file with a function prepare(layer)"
    if not path.is_file() or path.suffix != ".py":
        raise ArgumentError(f"--peer-module is {str(path)!r}, which is no .py file; {expected}", code="bench")
    name = f"coterie_peer_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Triton and dataclasses look a module up by its name
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        raise ArgumentError(
            f"{str(path)!r} cannot be imported ({type(cause).__name__}: {cause})", code="bench"
        ) from cause
    if not callable(getattr(module, "prepare", None)):
        raise ArgumentError(f"{str(path)!r} has no function prepare; {expected}", code="bench")
    return module


def entrants(module: ModuleType, case: Case) -> list[Entrant]:
    """What a peer module makes of a case's layers."""

    def layer(experts: Experts) -> Layer:
        gate, up = experts.gate, experts.up
        if up is None:
            assert not isinstance(gate, Packed)
            gate, up = gate.chunk(2, 1)
        given = PeerLayer(case.format_name, gate, up, experts.down, experts.activation, case.shape.top_k)
        made: Layer = module.prepare(given)
        if not callable(made):
            raise RefusedError(f"prepare gave {type(made).__name__}, expected a function of x and logits")
        return made

    label = str(getattr(module, "NAME", module.__name__.removeprefix("coterie_peer_")))
    return [Entrant(label, [layer(experts) for experts in case.layers], note=str(getattr(module, "NOTE", "")))]
