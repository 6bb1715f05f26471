"""Write docs/parity.md anew: every family in every format and mode against transformers and mlx-lm.

usage: python scripts/write_parity_page.py [--only MODE ...] [--json FILE] [--merge FILE]

  --only MODE    measure these modes alone (cpu, mlx, cuda; several may be given); the page keeps its other figures
  --json FILE    write the figures to FILE, not the page: on a machine that has what this one lacks
  --merge FILE   take the figures of FILE into the page, and measure nothing

The figures stand in docs/parity.json, and the page is made of them. The models are those of
tests/models/tiny_models.py; a family that is listed there has its row. A few minutes for each mode.
"""

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from coterie.models.families import FAMILIES  # noqa: E402
from models import tiny  # noqa: E402
from models.parity import (  # noqa: E402
    COMPARED,
    PAGE_MODES,
    Mode,
    mlx_logits,
    references_for,
    relative_error,
    transformers_logits,
    worst_error,
)

PAGE, FIGURES = ROOT / "docs" / "parity.md", ROOT / "docs" / "parity.json"
LIBRARIES = ("transformers", "torch", "mlx-lm", "mlx", "triton")
Figures = dict[str, Any]
"""{"modes": {mode: {"versions": text, reference: {family: {format: error or None}}}}, "deviations": [[cell, ...]]}"""


def main() -> None:
    """Measure or take over figures, then write them or the page that they make."""
    options = arguments().parse_args()
    if options.merge:
        new = json.loads(Path(options.merge).read_text("utf-8"))
    else:
        new = measured([mode for mode in PAGE_MODES if PAGE_MODES[mode].backend in (options.only or ("cpu", "mlx"))])
    if options.json:
        write(Path(options.json), as_json(new))
        return
    figures = json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {"modes": {}, "deviations": []}
    figures["modes"].update(new["modes"])
    figures["deviations"] = new["deviations"] or figures["deviations"]
    write(FIGURES, as_json(figures))
    write(PAGE, "\n".join(page(figures)) + "\n")


def arguments() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(description="Write docs/parity.md anew.")
    parser.add_argument("--only", nargs="+", choices=sorted({mode.backend for mode in PAGE_MODES.values()}))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--merge", metavar="FILE")
    return parser


def write(path: Path, text: str) -> None:
    """Replace a file, and say so."""
    path.write_text(text, "utf-8")
    print(f"{path} is written")


def as_json(figures: Figures) -> str:
    """Figures as text."""
    return json.dumps(figures, indent=1) + "\n"


# Figures -------------------------------------------------------------------------------------------------------------


def measured(modes: Iterable[str]) -> Figures:
    """The figures of some modes; the deviations of mlx-lm belong to those of the CPU."""
    found = {mode: errors(mode) for mode in modes}
    on_cpu = any(PAGE_MODES[mode].backend == "cpu" for mode in found)
    return {"modes": found, "deviations": list(deviations()) if on_cpu else []}


def errors(mode: str) -> dict[str, Any]:
    """The worst error of each family and format against each reference."""
    found: dict[str, Any] = {
        reference: {
            family: {form: worst(names, form, mode, reference) for form in tiny.FORMATS}
            for family, names in families().items()
        }
        for reference in references_for(PAGE_MODES[mode])
    }
    names = [name for name in LIBRARIES if name != "triton" or PAGE_MODES[mode].backend == "cuda"]
    return {"versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names), **found}


def families() -> dict[str, list[str]]:
    """The tiny models of each family, by its name."""
    found: dict[str, list[str]] = {}
    for name, model in tiny.MODELS.items():
        found.setdefault(FAMILIES[model.model_type].name, []).append(name)
    return dict(sorted(found.items()))


def worst(names: Iterable[str], form: str, mode: str, reference: str) -> float | None:
    """The worst error of a family's models; None where the reference is not one for any of them."""
    compared = [name for name in names if reference != "mlx-lm" or not tiny.mlx_differs(name, form)]
    print(".", end="", flush=True)
    return max(worst_error(name, form, reference, PAGE_MODES[mode]) for name in compared) if compared else None


def deviations() -> Iterator[list[str]]:
    """What mlx-lm computes otherwise than the original implementation, and how far that takes it."""
    for name in tiny.MODELS:
        for form in ("plain", "mxfp4"):
            reason = tiny.mlx_differs(name, form)
            if reason and (form == "plain" or not tiny.mlx_differs(name, "plain")):
                distance = relative_error(mlx_logits(name, form), transformers_logits(name, form))
                yield [name, title(form), reason, f"{distance:.0e}"]


# The page ------------------------------------------------------------------------------------------------------------


def page(figures: Figures) -> Iterator[str]:
    """The lines of the page."""
    yield from (
        "# Parity",
        "",
        "How far the logits of this decoder are from those of the original implementations: the relative L2 error",
        f"over {tiny.LENGTH} tokens, three times the sliding window. transformers runs on the dequantised weights,",
        "mlx-lm on the stored ones, both in f32. The models are tiny and random, several for each family, made by the",
        "two libraries themselves; a figure is the worst of them and of the ways of passing the tokens:",
        f"{', '.join(COMPARED)}.",
        "The bound stands above each table; tests in CI hold the CPU and MLX to it. Where activations are rounded",
        "(default), another expert may be chosen where two are nearly tied: there, in at most the share of rows that",
        "stands beside the bound, the choice of the exact run is taken.",
        "",
        "```bash",
        "python scripts/write_parity_page.py",
        "```",
        "",
        "On a machine with a GPU of NVIDIA's, `--only cuda --json FILE` measures there; `--merge FILE` takes the",
        "figures into this page anywhere.",
    )  # fmt: skip
    for mode, how in PAGE_MODES.items():
        found = figures["modes"].get(mode)
        if found is None:
            continue
        for reference in references_for(how):
            yield from ("", f"## {mode} against {reference}", "", bound(how, found["versions"]), "")
            yield from table(found[reference])
    yield from deviation_table(figures["deviations"])


def bound(how: Mode, versions: str) -> str:
    """What stands above a table."""
    rows = f", rows: {how.flips:.0%}" if how.flips else ""
    return f"Bound: {how.bound:g}{rows}. {versions}."


def table(found: dict[str, dict[str, float | None]]) -> Iterator[str]:
    """One row a family, one column a format."""
    yield f"| family | {' | '.join(title(form) for form in tiny.FORMATS)} |"
    yield f"|---|{'---|' * len(tiny.FORMATS)}"
    for family, errors in found.items():
        cells = ("-" if error is None else f"{error:.1e}" for error in (errors[form] for form in tiny.FORMATS))
        yield f"| `{family}` | {' | '.join(cells)} |"


def title(form: str) -> str:
    """A format as the page calls it."""
    return "unquantised" if form == "plain" else form


def deviation_table(rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """The models that are not compared with mlx-lm, and why."""
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
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield from (
        "",
        'A gpt-oss checkpoint with `"truncate": true` under `rope_scaling` in its config.json gives mlx-lm\'s numbers.',
    )


if __name__ == "__main__":
    main()
