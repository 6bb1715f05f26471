"""The model that ships with the package: its files lie beside this module, and README.md there says what it is."""

from pathlib import Path

from coterie.errors import CheckpointError

_WEIGHTS = "model.safetensors"


def path() -> Path:
    """The folder of the bundled model; `CheckpointError` where the package was installed without its weights."""
    folder = Path(__file__).resolve().parent
    if not (folder / _WEIGHTS).is_file():
        raise CheckpointError(
            f"the bundled model's weights are missing: expected {folder / _WEIGHTS}; install the package again, "
            "or name a checkpoint of your own",
            code="bundled_missing",
        )
    return folder
