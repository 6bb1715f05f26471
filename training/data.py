"""The corpus: source files of the CPython standard library, split by file, as arrays of token ids.

In: a folder that holds a standard library (by default the running Python's own).
Out: `train.npy` and `heldout.npy` (uint16 ids, documents separated by the end-of-text token), `heldout.json`
(which file each held-out token belongs to, and its size in bytes) and `tokenizer.json`.
Refuses nothing silently: what is left out, and why, is counted in `corpus.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sysconfig
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from vocabulary import END_OF_TEXT, train_tokenizer

SPLIT_BUCKETS = 1000
SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__"})
# Written when an interpreter is built: they hold that machine's paths and flags, not Python source anyone wrote.
BUILD_RECORDS = "_sysconfigdata"


@dataclass(frozen=True)
class Document:
    """One source file: its path relative to the library's root, with forward slashes, and its whole text."""

    path: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Size of the text in UTF-8 bytes."""
        return len(self.text.encode("utf-8"))


def collect(root: Path) -> tuple[list[Document], dict[str, int]]:
    """Read every `.py` file below `root` in path order; return the documents and how many files were left out, why."""
    documents: list[Document] = []
    left_out: Counter[str] = Counter()
    seen: set[bytes] = set()
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        if relative.name.startswith(BUILD_RECORDS):
            left_out["build record"] += 1
            continue
        raw = file.read_bytes()
        digest = hashlib.sha256(raw).digest()
        if not raw.strip():
            left_out["empty"] += 1
        elif digest in seen:  # a copy on both sides of the split would leak
            left_out["copy of another file"] += 1
        else:
            seen.add(digest)
            try:
                documents.append(Document(relative.as_posix(), raw.decode("utf-8")))
            except UnicodeDecodeError:
                left_out["not UTF-8"] += 1
    if not documents:
        raise FileNotFoundError(f"no .py files below {root}: give the folder of a standard library with --stdlib")
    return documents, dict(left_out)


def is_held_out(path: str, held_out_per_mille: int) -> bool:
    """Whether a file belongs to the held-out split: decided by its path alone, so the same in every run."""
    bucket = int.from_bytes(hashlib.sha256(path.encode("utf-8")).digest()[:8], "big") % SPLIT_BUCKETS
    return bucket < held_out_per_mille


def part_of(path: str) -> str:
    """The part of the library a file counts under in the held-out report."""
    head = path.split("/", 1)[0]
    return head if head in ("test", "encodings") else "library"


def encode(documents: Iterable[Document], tokenizer: Tokenizer) -> tuple[np.ndarray, list[int]]:
    """Concatenate the documents' ids with an end-of-text id before each and one at the very end; also their lengths."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    pieces: list[list[int]] = []
    lengths: list[int] = []
    for encoding in tokenizer.encode_batch([d.text for d in documents], add_special_tokens=False):
        pieces.append([end, *encoding.ids])
        lengths.append(len(encoding.ids) + 1)
    flat = np.fromiter((i for piece in [*pieces, [end]] for i in piece), dtype=np.uint16)
    return flat, lengths


def prepare(stdlib: Path, target: Path, *, vocab_size: int, held_out_per_mille: int) -> dict[str, object]:
    """Split, train the tokenizer on the training split, encode both splits into `target`; return the corpus record."""
    documents, left_out = collect(stdlib)
    train = [d for d in documents if not is_held_out(d.path, held_out_per_mille)]
    held_out = [d for d in documents if is_held_out(d.path, held_out_per_mille)]
    tokenizer = train_tokenizer((d.text for d in train), vocab_size)
    target.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(target / "tokenizer.json"), pretty=False)

    train_ids, _ = encode(train, tokenizer)
    held_ids, held_lengths = encode(held_out, tokenizer)
    np.save(target / "train.npy", train_ids)
    np.save(target / "heldout.npy", held_ids)
    files = [
        {"path": d.path, "part": part_of(d.path), "n_bytes": d.n_bytes, "n_tokens": n}
        for d, n in zip(held_out, held_lengths, strict=True)
    ]
    (target / "heldout.json").write_text(json.dumps(files, indent=1) + "\n")
    train_bytes, held_bytes = (sum(d.n_bytes for d in part) for part in (train, held_out))
    record: dict[str, object] = {
        "library": stdlib.name,
        "files": {"train": len(train), "held_out": len(held_out), "left_out": left_out},
        "bytes": {"train": train_bytes, "held_out": held_bytes},
        "tokens": {"train": int(train_ids.size), "held_out": int(held_ids.size)},
        "bytes_per_token": {"train": train_bytes / train_ids.size, "held_out": held_bytes / held_ids.size},
        "held_out_bytes_by_part": _bytes_by_part(files),
    }
    (target / "corpus.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _bytes_by_part(files: list[dict[str, object]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for file in files:
        total[str(file["part"])] += int(str(file["n_bytes"]))
    return dict(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stdlib", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_name("settings.json"))
    arguments = parser.parse_args()
    settings = json.loads(arguments.settings.read_text())
    record = prepare(
        arguments.stdlib,
        arguments.target,
        vocab_size=settings["model"]["vocab_size"],
        held_out_per_mille=settings["data"]["held_out_per_mille"],
    )
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
