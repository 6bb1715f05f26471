"""Held-out bits per byte of one checkpoint in bfloat16, in 8 bits and in 4 bits, and the load of its experts.

    python measure_formats.py --checkpoint FOLDER --data DATA --out FILE

The weights pass through the affine format and back (groups of 64, routers always at 8 bits, as the converted files
have them; `--check` compares every one of them with what `mx.quantize` and `mx.dequantize` give), and transformers
computes with the result in float32: the rows differ in the weights alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate import bits_per_byte, load_report, read_held_out, token_losses
from model import RouterTap, logits_of
from rounding import round_trip
from torch import nn
from transformers import Gemma4ForCausalLM

GROUP_SIZE = 64
ROUTER_BITS = 8
ROWS: dict[str, int | None] = {"bf16": None, "8 bits": 8, "4 bits": 4}


def differences_from_mlx(checkpoint: Path) -> int:
    """How many weights, over all quantised rows, differ from MLX's own round trip."""
    import mlx.core as mx

    model, different = load(checkpoint, None, "cpu"), 0
    for bits in filter(None, ROWS.values()):
        for _, p in matrices_of(model):
            weight = mx.array(p.detach().numpy()).astype(mx.bfloat16)
            codes, *scaling = mx.quantize(weight, group_size=GROUP_SIZE, bits=bits)
            wide = (x.astype(mx.float32) for x in scaling)
            theirs = np.array(mx.dequantize(codes, *wide, group_size=GROUP_SIZE, bits=bits))
            different += int((theirs != round_trip(p.detach(), bits, GROUP_SIZE).numpy()).sum())
    return different


def matrices_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that the format packs."""
    return [(name, p) for name, p in model.named_parameters() if p.ndim >= 2]


def load(checkpoint: Path, bits: int | None, device: str) -> Gemma4ForCausalLM:
    """The checkpoint's model in float32, its matrices passed through the format of `bits` when one is named."""
    model = Gemma4ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, experts_implementation="eager")
    model.config.use_cache = False
    if bits is not None:
        with torch.no_grad():
            for name, p in matrices_of(model):
                p.copy_(round_trip(p, ROUTER_BITS if ".router." in name else bits, GROUP_SIZE))
    return model.eval().to(device)


def measure(model: Gemma4ForCausalLM, data: Path, *, context: int, stride: int) -> dict[str, Any]:
    """Bits per byte and expert load over the whole held-out split."""
    ids, files = read_held_out(data)
    tap = RouterTap(model)
    counts = torch.zeros(model.config.num_hidden_layers, model.config.num_experts, dtype=torch.int64)

    def logits(inputs: torch.Tensor) -> torch.Tensor:
        tap.clear()
        out = logits_of(model, inputs)
        counts.add_(tap.counts().cpu())
        return out

    losses = token_losses(logits, ids, context=context, stride=stride, batch=16, device=str(model.device))
    bits = {part: round(value, 4) for part, value in bits_per_byte(losses, files).items()}
    return {
        "bits_per_byte": bits,
        "nats_per_token": round(float(losses.mean()), 4),
        "load": load_report(counts.numpy()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--check", action="store_true", help="only compare the round trip with MLX's, on the CPU")
    arguments = parser.parse_args()
    settings = json.loads(Path(__file__).with_name("settings.json").read_text())["data"]
    if arguments.check:
        print(f"{differences_from_mlx(arguments.checkpoint)} weights differ from MLX's round trip")
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {}
    for row, bits in ROWS.items():
        start = time.perf_counter()
        model = load(arguments.checkpoint, bits, device)
        results[row] = measure(model, arguments.data, context=settings["context"], stride=settings["held_out_stride"])
        print(row, results[row]["bits_per_byte"], f"{time.perf_counter() - start:.0f} s", flush=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
