"""What counting gets: bigram models over bytes and over tokens, on the same split as the trained model.

    python baselines.py --data DATA --stdlib LIBRARY --out FILE

P(next | previous) = (count(previous, next) + k) / (count(previous) + k * V), counted on the training files. The k of
each model is the one that is best on the held-out files themselves, so the baselines are as strong as they can be.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from pathlib import Path

import numpy as np
from data import collect, is_held_out
from evaluate import read_held_out

ADDED = tuple(10.0**e for e in np.arange(-4, 1.25, 0.25))


def bigram_bits(train: np.ndarray, held_out: np.ndarray, n_symbols: int) -> dict[str, float]:
    """Total bits of `held_out[1:]` under the bigram model of `train`, for the best k of ADDED."""
    pairs = np.bincount(train[:-1].astype(np.int64) * n_symbols + train[1:], minlength=n_symbols**2)
    pairs = pairs.reshape(n_symbols, n_symbols)
    totals = pairs.sum(1)
    previous, following = held_out[:-1].astype(np.int64), held_out[1:].astype(np.int64)
    seen, context = pairs[previous, following], totals[previous]
    bits = {k: float(-np.log2((seen + k) / (context + k * n_symbols)).sum()) for k in ADDED}
    best = min(bits, key=lambda k: bits[k])
    return {"k": best, "bits": bits[best]}


def measure(data: Path, stdlib: Path) -> dict[str, dict[str, float]]:
    """Both baselines in bits per byte of held-out text."""
    settings = json.loads(Path(__file__).with_name("settings.json").read_text())
    per_mille, vocab_size = settings["data"]["held_out_per_mille"], settings["model"]["vocab_size"]
    documents, _ = collect(stdlib)
    texts: tuple[list[bytes], list[bytes]] = ([], [])
    for document in documents:
        texts[is_held_out(document.path, per_mille)].append(document.text.encode("utf-8"))
    ends = b"\0"  # a byte that marks the end of a file, as the end-of-text token does among tokens
    train, held_out = (np.frombuffer(ends + ends.join(part) + ends, np.uint8) for part in texts)
    held_ids, files = read_held_out(data)
    n_bytes = sum(file["n_bytes"] for file in files)
    if n_bytes != sum(map(len, texts[1])):
        raise ValueError(f"{stdlib} is not the library that {data} was prepared from: held-out sizes differ")
    bytewise = bigram_bits(train, held_out, 256)
    tokenwise = bigram_bits(np.load(data / "train.npy"), held_ids, vocab_size)
    return {
        name: {"k": model["k"], "bits_per_byte": round(model["bits"] / n_bytes, 4)}
        for name, model in (("byte_bigram", bytewise), ("token_bigram", tokenwise))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.stdlib)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
