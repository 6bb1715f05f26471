"""Build the source distribution and the wheel and check their content: bundled model, type marker, licence."""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

IN_WHEEL = (
    "coterie/py.typed",
    "coterie/bundled/model.safetensors",
    "coterie/bundled/config.json",
    "coterie/bundled/tokenizer.json",
    "coterie/backends/mlx/metal/kernels/route.metal",
    "coterie/backends/mlx/metal/shared/selection.metal",
)
IN_SDIST = ("src/coterie/bundled/model.safetensors", "tests/test_house.py", "README.md", "LICENSE", "pyproject.toml")
MODEL_LIMIT = 12_000_000
"""Bytes that the bundled model may take in the wheel."""


def expect(names: set[str], wanted: tuple[str, ...], where: str) -> None:
    """Exit with a sentence when a file is missing."""
    missing = [name for name in wanted if name not in names]
    if missing:
        sys.exit(f"{where} lacks {', '.join(missing)}")


def main() -> None:
    """Build the source distribution, and from it the wheel, into a temporary folder."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "build", "--outdir", folder, root], check=True, stdout=subprocess.DEVNULL)
        (source,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(source) as archive:
            expect({name.partition("/")[2] for name in archive.getnames()}, IN_SDIST, source.name)
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as wheel:
            names = set(wheel.namelist())
            bundled = sum(item.compress_size for item in wheel.infolist() if "/bundled/" in item.filename)
        expect(names, IN_WHEEL, path.name)
        if not any(name.endswith("licenses/LICENSE") for name in names):
            sys.exit(f"{path.name} lacks the licence")
        if bundled > MODEL_LIMIT:
            sys.exit(f"the bundled model takes {bundled} bytes in {path.name}, expected at most {MODEL_LIMIT}")
        print(f"{path.name}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB, the model {bundled / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
