"""What a report leaves behind: a page, a JSON file and plots, each written whole or not at all."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from coterie.checkpoint.files import disk, write_whole, writing
from coterie.inspect import figures
from coterie.inspect.page import page
from coterie.inspect.report import LayerReport, Report
from coterie.inspect.summary import dumps, summary


def write_page(report: Report, path: Path, layer: int | None = None) -> Path:
    """The page, which opens with `layer`; returns its path."""
    _write(path, page(report, layer).encode("utf-8"))
    return path


def write_all(report: Report, folder: Path, layer: int | None = None, top: int = 10) -> list[Path]:
    """report.json, report.html, and heatmap, strip and co-activation as PNG into `folder`; returns their paths.

    The last two are of `layer`, or of the middle one of the layers with experts. `BackendUnavailableError` without
    matplotlib, `CheckpointError` where nothing can be written.
    """
    figures.check()
    chosen = shown_layer(report, layer)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "report.json", dumps(summary(report, top)).encode("ascii"))
    plots: dict[str, Callable[[BytesIO], None]] = {
        "heatmap.png": lambda target: figures.heatmap(report, target),
        f"strip-layer-{chosen.layer}.png": lambda target: figures.strip(report, chosen, target),
        f"coactivation-layer-{chosen.layer}.png": lambda target: figures.coactivation(report, chosen, target),
    }
    for name, draw in plots.items():
        drawn = BytesIO()
        draw(drawn)
        _write(folder / name, drawn.getvalue())
    write_page(report, folder / "report.html", layer)
    return [folder / name for name in ("report.json", "report.html", *plots)]


def shown_layer(report: Report, layer: int | None) -> LayerReport:
    """The layer of that number, or the middle one of those with experts."""
    return report.layers[len(report.layers) // 2] if layer is None else report.layer(layer)


def _write(path: Path, data: bytes) -> None:
    write_whole(path, lambda file: disk.write_at(file, 0, data))
