"""Held-out measurements: bits per byte, by part of the library, and how evenly the experts are used."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

LogitsFn = Callable[[torch.Tensor], torch.Tensor]


def windows(n_tokens: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows (start, first scored target, end) that score every token but the first exactly once.

    A window reads ids[start:end-1] and predicts ids[start+1:end]; all but the first window skip the targets that the
    window before has scored, so a target sees at least context - stride ids of what precedes it.
    """
    scored = 1
    while scored < n_tokens:
        end = min(n_tokens, scored + (context if scored == 1 else stride))
        start = max(0, end - 1 - context)
        yield start, scored, end
        scored = end


@torch.no_grad()
def token_losses(
    logits_fn: LogitsFn, ids: np.ndarray, *, context: int, stride: int, batch: int, device: str
) -> np.ndarray:
    """Loss in nats of every id but the first, float64 [len(ids) - 1], predicted from the ids before it."""
    losses = np.full(ids.size, np.nan)
    data = torch.from_numpy(ids.astype(np.int64)).to(device)
    todo = list(windows(ids.size, context, stride))
    whole = [w for w in todo if w[2] - 1 - w[0] == context]
    rest = [w for w in todo if w[2] - 1 - w[0] != context]
    for chunk in [whole[i : i + batch] for i in range(0, len(whole), batch)] + [[w] for w in rest]:
        inputs = torch.stack([data[start : end - 1] for start, _, end in chunk])
        targets = torch.stack([data[start + 1 : end] for start, _, end in chunk])
        loss = (
            functional.cross_entropy(logits_fn(inputs).transpose(1, 2), targets, reduction="none")
            .double()
            .cpu()
            .numpy()
        )
        for (_, first, end), row in zip(chunk, loss, strict=True):
            losses[first:end] = row[first - end :]
    return losses[1:]


def bits_per_byte(losses: np.ndarray, files: list[dict[str, Any]]) -> dict[str, float]:
    """Bits per byte of source text, over all held-out files and for each part of the library.

    The end-of-text id after each file is charged to that file and counts no bytes.
    """
    nats: Counter[str] = Counter()
    n_bytes: Counter[str] = Counter()
    position = 0
    for file in files:
        own = float(losses[position : position + file["n_tokens"]].sum())
        position += file["n_tokens"]
        for key in ("all", file["part"]):
            nats[key] += own
            n_bytes[key] += file["n_bytes"]
    if position != losses.size:
        raise ValueError(
            f"heldout.json names {position} tokens, heldout.npy holds {losses.size}: prepare the data again"
        )
    return {key: nats[key] / math.log(2) / n_bytes[key] for key in nats}


def load_report(counts: np.ndarray) -> dict[str, Any]:
    """How evenly experts are used: counts [layers, E] -> per layer entropy / log(E), smallest and largest share."""
    shares = counts / counts.sum(1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    entropy = -(shares * logs).sum(1) / math.log(counts.shape[1])
    return {
        "entropy_over_log_experts": [round(float(x), 4) for x in entropy],
        "smallest_share": [round(float(x), 5) for x in shares.min(1)],
        "largest_share": [round(float(x), 5) for x in shares.max(1)],
        "even_share": round(1 / counts.shape[1], 5),
        "unused_experts": int((counts == 0).sum()),
    }


def read_held_out(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The held-out ids and the files they come from, as `data.py` wrote them."""
    return np.load(folder / "heldout.npy"), json.loads((folder / "heldout.json").read_text())
