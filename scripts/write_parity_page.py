"""Write docs/parity.md anew: every family in every format against transformers and mlx-lm. Takes a few minutes.

usage: python scripts/write_parity_page.py

The models are those of tests/models/tiny_models.py; a family that is listed there has its row.
"""

import importlib.metadata
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from coterie.models.families import FAMILIES  # noqa: E402
from models import tiny  # noqa: E402
from models.parity import COMPARED, MODES, REFERENCES, mlx_logits, relative_error, transformers_logits, worst_error  # noqa: E402

PAGE = ROOT / "docs" / "parity.md"
LIBRARIES = ("transformers", "torch", "mlx-lm", "mlx")


def main() -> None:
    """Measure, then replace the page."""
    PAGE.write_text("\n".join(page()) + "\n", "utf-8")
    print(f"{PAGE} is written")


def page() -> Iterator[str]:
    """The lines of the page."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    yield from (
        "# Parity",
        "",
        "How far the logits of this decoder are from those of the original implementations: the relative L2 error",
        f"over {tiny.LENGTH} tokens, three times the sliding window. transformers runs on the dequantised weights,",
        "mlx-lm on the stored ones, both in f32. The models are tiny and random, several for each family, made by the",
        "two libraries themselves; a figure is the worst of them and of the ways of passing the tokens:",
        f"{', '.join(COMPARED)}.",
        "The same is tested in CI, with the bound that stands above each table. Activations of 16 bits (CPU, default)",
        "may choose another expert where two are nearly tied: there, at most one row in a hundred, the choice of the",
        "exact run is taken.",
        "",
        "```bash",
        "python scripts/write_parity_page.py",
        "```",
        "",
        f"Written with {versions}.",
    )  # fmt: skip
    for mode, how in MODES.items():
        for reference in REFERENCES:
            yield from ("", f"## {mode} against {reference}", "", f"Bound: {how.bound:g}.", "")
            yield from table(mode, reference)
    yield from deviations()


def table(mode: str, reference: str) -> Iterator[str]:
    """One row a family, one column a format."""
    yield f"| family | {' | '.join('unquantised' if form == 'plain' else form for form in tiny.FORMATS)} |"
    yield f"|---|{'---|' * len(tiny.FORMATS)}"
    for family, names in families().items():
        cells = (cell(names, form, mode, reference) for form in tiny.FORMATS)
        yield f"| `{family}` | {' | '.join(cells)} |"


def families() -> dict[str, list[str]]:
    """The tiny models of each family, by its name."""
    found: dict[str, list[str]] = {}
    for name, model in tiny.MODELS.items():
        found.setdefault(FAMILIES[model.model_type].name, []).append(name)
    return dict(sorted(found.items()))


def cell(names: Iterable[str], form: str, mode: str, reference: str) -> str:
    """The worst error of a family's models; a dash where the reference is not one for any of them."""
    compared = [name for name in names if reference != "mlx-lm" or not tiny.mlx_differs(name, form)]
    print(".", end="", flush=True)
    return f"{max(worst_error(name, form, reference, MODES[mode]) for name in compared):.1e}" if compared else "-"


def deviations() -> Iterator[str]:
    """What mlx-lm computes otherwise than the original implementation, and how far that takes it."""
    yield from (
        "",
        "## Where mlx-lm differs from the original",
        "",
        "There Coterie follows the original, and the models are left out of the comparison with mlx-lm. The figure is",
        "the distance between mlx-lm and transformers.",
        "",
        "| model | format | mlx-lm: | distance |",
        "|---|---|---|---|",
    )
    for name in tiny.MODELS:
        for form in ("plain", "mxfp4"):
            reason = tiny.mlx_differs(name, form)
            if reason and (form == "plain" or not tiny.mlx_differs(name, "plain")):
                distance = relative_error(mlx_logits(name, form), transformers_logits(name, form))
                shown = "unquantised" if form == "plain" else form
                yield f"| {name} | {shown} | {reason} | {distance:.0e} |"
    yield from (
        "",
        'A gpt-oss checkpoint with `"truncate": true` under `rope_scaling` in its config.json gives mlx-lm\'s numbers.',
    )


if __name__ == "__main__":
    main()
