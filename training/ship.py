"""Put a trained checkpoint into the package, in 4 bits, by the project's own conversion.

    python ship.py --checkpoint FOLDER

In: what `checkpoint.py` wrote. Out: the files of `src/coterie/bundled`, the ones that are not code or text replaced.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from coterie.checkpoint import convert
from coterie.models.families import family_of

BITS, GROUP_SIZE = 4, 64
BUNDLED = Path(__file__).resolve().parent.parent / "src" / "coterie" / "bundled"
SIZE_LIMIT = 12_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        converted = Path(scratch) / "model"
        report = convert(
            arguments.checkpoint,
            converted,
            lambda config: family_of(config).name_map(config),
            bits=BITS,
            group_size=GROUP_SIZE,
        )
        files = sorted(converted.iterdir())
        size = sum(file.stat().st_size for file in files)
        if size > SIZE_LIMIT:
            raise SystemExit(f"the model takes {size} bytes, expected at most {SIZE_LIMIT}: train a smaller one")
        for file in files:
            shutil.copyfile(file, BUNDLED / file.name)
    print(f"{len(files)} files, {size / 1e6:.2f} MB, {report.bits_per_weight:.3f} bits a weight")


if __name__ == "__main__":
    main()
