"""Draw the loss curve. In: `curve.csv` and `baselines.json` of the results. Out: `curve.png`.

python plot.py --results results
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw(results: Path) -> None:
    """Training loss in nats per token on the left; held-out bits per byte, as is and rounded, on the right."""
    with (results / "curve.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    baselines = json.loads((results / "baselines.json").read_text())
    best = min(rows, key=lambda row: row["held_out_bits_per_byte_rounded"])
    epochs = [row["epoch"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot(epochs, [row["train_nats_per_token"] for row in rows], label="training (with dropout)")
    left.plot(epochs, [row["held_out_nats_per_token"] for row in rows], label="held out")
    left.set(xlabel="epoch", ylabel="nats per token", title="Cross entropy")
    right.plot(epochs, [row["held_out_bits_per_byte"] for row in rows], label="exact weights")
    right.plot(epochs, [row["held_out_bits_per_byte_rounded"] for row in rows], label="weights rounded to 4 bits")
    right.axvline(best["epoch"], color="grey", linewidth=0.8, label="kept")
    bigram = baselines["token_bigram"]["bits_per_byte"]
    right.set(xlabel="epoch", ylabel="bits per byte", title=f"Held out (token bigram: {bigram:.2f})")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(results / "curve.png", dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("results"))
    draw(parser.parse_args().results)


if __name__ == "__main__":
    main()
