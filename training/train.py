"""Train the bundled model. In: the arrays `data.py` prepared. Out: the best weights, the curve, a record of the run.

    python train.py --data DATA --out OUT [--minutes 7] [--set training.batch=64]

`--minutes` bounds the run: the number of steps is settled after the first ones have been timed, so that the learning
rate ends its descent inside the time given.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import json
import platform
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from evaluate import bits_per_byte, load_report, read_held_out, token_losses
from model import RouterTap, build, logits_of
from optimiser import lr_fraction, make_optimisers
from rounding import rounded_weights
from torch.nn import functional

from checkpoint import write_weights

TIMED_STEPS = 40
FIRST_TIMED_STEP = 10
EVALUATION_SHARE = 0.2
TRAINING_COLUMNS = ("train_nats_per_token", "balance_loss", "z_loss", "gradient_norm")


@dataclass
class Run:
    """What a run carries from step to step."""

    settings: dict[str, Any]
    device: str
    model: Any
    tap: RouterTap
    optimisers: list[torch.optim.Optimizer]
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_bits: float = float("inf")
    best_step: int = 0

    def autocast(self) -> AbstractContextManager[None]:
        """bfloat16 products on a GPU; plain float32 elsewhere."""
        return torch.autocast("cuda", torch.bfloat16) if self.device == "cuda" else contextlib.nullcontext()

    def rounding(self, active: bool) -> AbstractContextManager[None]:
        """Rounded weights in the last part of the run, exact ones before."""
        options = self.settings["training"]
        if not active:
            return contextlib.nullcontext()
        return rounded_weights(self.model, options["rounding_bits"], options["rounding_group"])


class Batches:
    """Windows of context + 1 ids in a new random order and at a new random offset every epoch."""

    def __init__(self, ids: np.ndarray, context: int, batch: int, device: str, seed: int) -> None:
        self.data = torch.from_numpy(ids.astype(np.int32)).to(device)
        self.context, self.batch = context, batch
        self.random = np.random.default_rng(seed)
        self.starts = np.empty(0, np.int64)

    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return (self.data.numel() - 1) // self.context // self.batch

    def next(self) -> torch.Tensor:
        """Ids [batch, context + 1]."""
        if self.starts.size < self.batch:
            last = self.data.numel() - self.context - 1
            starts = np.arange(self.random.integers(self.context), last, self.context)
            self.starts = self.random.permutation(starts)
        chosen, self.starts = self.starts[: self.batch], self.starts[self.batch :]
        grid = torch.from_numpy(chosen).to(self.data.device)[:, None]
        return self.data[grid + torch.arange(self.context + 1, device=self.data.device)].long()


def train_step(run: Run, ids: torch.Tensor, fraction: float, rounding: bool) -> torch.Tensor:
    """One step; returns [cross entropy in nats per token, balance loss, z-loss, gradient norm], still on the device."""
    options = run.settings["training"]
    run.tap.clear()
    with run.rounding(rounding), run.autocast():
        logits = logits_of(run.model, ids[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        balance, z = run.tap.balance_loss(), run.tap.z_loss()
        (loss + options["balance_weight"] * balance + options["z_weight"] * z).backward()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), options["clip_norm"])
    for optimiser in run.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["peak_lr"] * fraction
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return torch.stack([loss.detach(), balance.detach(), z.detach(), norm])


def measure(run: Run, held_out: np.ndarray, files: list[dict[str, Any]], *, rounding: bool) -> dict[str, Any]:
    """Held-out bits per byte and the experts' load, of the weights as they are or rounded as they will ship."""
    data = run.settings["data"]
    counts = torch.zeros(run.model.config.num_hidden_layers, run.tap.n_experts, dtype=torch.int64)
    run.model.eval()

    def logits(ids: torch.Tensor) -> torch.Tensor:
        run.tap.clear()
        with run.autocast():
            out = logits_of(run.model, ids)
        counts.add_(run.tap.counts().cpu())
        return out

    # Run as written: a last, smaller batch would cost a compilation of its own.
    with run.rounding(rounding), torch.compiler.set_stance("force_eager"):
        losses = token_losses(
            logits, held_out, context=data["context"], stride=data["held_out_stride"], batch=32, device=run.device
        )
    run.model.train()
    run.tap.clear()
    bits = {part: round(value, 4) for part, value in bits_per_byte(losses, files).items()}
    return {
        "bits_per_byte": bits,
        "nats_per_token": round(float(losses.mean()), 4),
        "load": load_report(counts.numpy()),
    }


def keep_best(run: Run, step: int, bits: float) -> None:
    """Remember the weights when, rounded as they will ship, they are the best so far on held-out text."""
    if bits < run.best_bits:
        run.best_bits, run.best_step = bits, step
        run.best = {k: v.detach().cpu().clone() for k, v in run.model.state_dict().items()}


class Clock:
    """Times the run, and settles how many steps fit once the first ones after compilation have been timed."""

    def __init__(self, minutes: float, device: str) -> None:
        self.limit, self.device = minutes * 60, device
        self.start = time.perf_counter()
        self.timed_from = self.start
        self.evaluating = 0.0

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def planned(self, step: int, steps: int) -> int:
        """The steps to make in all: `steps`, but after the timed ones no more than fit."""
        if step not in (FIRST_TIMED_STEP, FIRST_TIMED_STEP + TIMED_STEPS):
            return steps
        if self.device == "cuda":
            torch.cuda.synchronize()
        if step == FIRST_TIMED_STEP:
            self.timed_from = time.perf_counter()
            return steps
        a_step = (time.perf_counter() - self.timed_from) / TIMED_STEPS
        fitting = int((self.limit - self.elapsed()) * (1 - EVALUATION_SHARE) / a_step)
        steps = step + max(1, min(steps - step, fitting))
        print(f"{a_step * 1e3:.1f} ms a step, {steps} steps planned", flush=True)
        return steps


def run_training(
    run: Run, batches: Batches, held: tuple[np.ndarray, list[dict[str, Any]]], minutes: float
) -> dict[str, Any]:
    """The whole run; returns its record."""
    options = run.settings["training"]
    steps, step = options["epochs"] * batches.per_epoch(), 0
    clock, pending = Clock(minutes, run.device), []
    while step < steps:
        steps = clock.planned(step, steps)
        fraction, rounding = lr_fraction(step, steps, options), step >= options["rounding_from"] * steps
        pending.append(train_step(run, batches.next(), fraction, rounding))
        step += 1
        if step % options["evaluate_every"] == 0 or step == steps:
            position = {"step": step, "epoch": round(step / batches.per_epoch(), 3), "lr_fraction": round(fraction, 5)}
            before = clock.elapsed()
            evaluate_now(run, held, torch.stack(pending).mean(0), {**position, "rounded": int(rounding)}, clock)
            clock.evaluating += clock.elapsed() - before
            pending.clear()
    seconds = clock.elapsed()
    tokens = steps * options["batch"] * run.settings["data"]["context"]
    return {
        "steps": steps,
        "epochs": round(steps / batches.per_epoch(), 2),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "seconds_evaluating": round(clock.evaluating, 1),
        "tokens_per_second_training": round(tokens / (seconds - clock.evaluating)),
        "best_step": run.best_step,
    }


def evaluate_now(
    run: Run,
    held: tuple[np.ndarray, list[dict[str, Any]]],
    training: torch.Tensor,
    position: dict[str, float],
    clock: Clock,
) -> None:
    """Measure on held-out text, keep the weights if they are the best, and add a row to the curve."""
    exact, rounded = measure(run, *held, rounding=False), measure(run, *held, rounding=True)
    keep_best(run, int(position["step"]), rounded["bits_per_byte"]["all"])
    row = {
        **position,
        "seconds": round(clock.elapsed(), 1),
        **dict(zip(TRAINING_COLUMNS, (round(x, 4) for x in training.tolist()), strict=True)),
        "held_out_nats_per_token": exact["nats_per_token"],
        "held_out_bits_per_byte": exact["bits_per_byte"]["all"],
        "held_out_bits_per_byte_rounded": rounded["bits_per_byte"]["all"],
        "smallest_expert_share": min(exact["load"]["smallest_share"]),
        "unused_experts": exact["load"]["unused_experts"],
    }
    run.curve.append(row)
    print(json.dumps(row), flush=True)


def versions(device: str) -> dict[str, str]:
    """What the run ran on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def override(settings: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Settings with `section.name=json` assignments applied; a name that does not exist is refused."""
    settings = copy.deepcopy(settings)
    for assignment in assignments:
        path, _, value = assignment.partition("=")
        section, _, name = path.partition(".")
        if name not in settings.get(section, {}):
            raise KeyError(f"no setting {path!r}: expected section.name as in settings.json")
        settings[section][name] = json.loads(value)
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("settings.json"))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.NAME=JSON")
    arguments = parser.parse_args()
    settings = override(json.loads(arguments.settings.read_text()), arguments.set)
    options, data = settings["training"], settings["data"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True

    model = (
        build(settings["model"], data["context"], seed=options["seed"], dropout=options["dropout"]).to(device).train()
    )
    run = Run(settings, device, model, RouterTap(model), make_optimisers(model, options))
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters / 1e6:.2f} M parameters on {device}", flush=True)
    if options["compile"]:
        model.model.compile(dynamic=False)
    held = read_held_out(arguments.data)
    batches = Batches(np.load(arguments.data / "train.npy"), data["context"], options["batch"], device, options["seed"])
    record = run_training(run, batches, held, arguments.minutes)

    model.load_state_dict(run.best)
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {
        "parameters": n_parameters,
        **record,
        "held_out_exact": measure(run, *held, rounding=False),
        "held_out_rounded": measure(run, *held, rounding=True),
        "versions": versions(device),
        "settings": settings,
    }
    write_weights(run.best, arguments.out)
    (arguments.out / "run.json").write_text(json.dumps(record, indent=2) + "\n")
    with (arguments.out / "curve.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(run.curve[0]))
        writer.writeheader()
        writer.writerows(run.curve)
    print(json.dumps({k: v for k, v in record.items() if k != "settings"}), flush=True)


if __name__ == "__main__":
    main()
