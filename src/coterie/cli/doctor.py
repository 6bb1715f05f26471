"""`coterie doctor`: everything that is wrong with a checkpoint, at once; a table for people, JSON for programs."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from coterie.cli.console import print_json, say, stdout, visible
from coterie.cli.convert import progress_bar
from coterie.cli.failures import Exit, guarded
from coterie.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from coterie.doctor import Finding, Report

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A folder or a hub id. Without it, the bundled model.", show_default=False)
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 for warnings, too.")] = False,
    headers: Annotated[
        bool, typer.Option("--headers", help="Do not read the weights' values: headers and texts only.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Find what silently goes wrong in a checkpoint: each finding with what to do.

    Exits with 0 if nothing is wrong (warnings and notes may be there), with 3 if there are errors.
    """
    with guarded(as_json=as_json, debug=debug):
        from coterie.doctor import Level, examine

        name = model or "the bundled model"
        with progress_bar(f"Reading {visible(name)}") as progress:
            report = examine(model, values=not headers, progress=progress)
        failed = report.count(Level.ERROR) > 0 or (strict and report.count(Level.WARNING) > 0)
        if as_json:
            print_json({"model": model, "healthy": not failed, **report.record()})
        else:
            show(report, name)
        if failed:
            raise typer.Exit(Exit.CHECKPOINT)


def show(report: "Report", name: str) -> None:
    """The findings as a table, and the verdict in a line."""
    console = stdout()
    if report.findings:
        console.print(table(report.findings))
        for code, n_more in report.omitted.items():
            console.print(Text(f"{code}: {n_more:,} more like these", style="dim"))
        console.print()
    console.print(verdict(report, name))
    if report.skipped:
        lacking = sorted({part for parts in report.skipped.values() for part in parts})
        say(f"{len(report.skipped)} rules were not asked, for want of: {', '.join(lacking)}", style="dim")


def table(findings: "tuple[Finding, ...]") -> Table:
    """A row for each finding: its level and code, and where, what, and what to do below each other."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_lines=True, collapse_padding=True)
    grid.add_column("finding", no_wrap=True)
    grid.add_column("where, what, and what to do", overflow="fold")
    for finding in findings:
        label = Text.assemble((str(finding.level), _STYLES[finding.level]), "\n", finding.code)
        lines = Text.assemble(
            (visible(finding.where), "bold"),
            f"\nfound {visible(finding.found)}",
            f"\nexpected {visible(finding.expected)}",
            (f"\n→ {visible(finding.advice)}", "cyan"),
        )
        grid.add_row(label, lines)
    return grid


def verdict(report: "Report", name: str) -> Text:
    """ "model: 1 error, 2 warnings, 0 notes; coterie.load refuses it"."""
    record = report.record()
    counts = ", ".join(
        f"{record[key]:,} {key if record[key] != 1 else key[:-1]}" for key in ("errors", "warnings", "notes")
    )
    style = "bold red" if record["errors"] else "yellow" if record["warnings"] else "green"
    loads = "coterie.load takes it" if report.loads else "coterie.load refuses it"
    return Text.assemble((f"{visible(name)}: {counts}", style), f"; {loads}")
