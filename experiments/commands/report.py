"""pdv report: results as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.program.outputs import check_file
from experiments.program.progress import console
from experiments.program.provenance import this_command
from experiments.runner.folder import check_apart


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of experiments, comparisons, sweeps, searches, maps, benches or runs, or above them."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "Results of pdv",
) -> None:
    """Write results as one HTML page, with tables, figures and the provenance of every number.

    The page is a single file that works offline, on narrow screens and in print. Nothing is measured or simulated
    again. Figures of sweeps and searches are drawn from their tables.

    Example: pdv report results/h100/fidelity results/limits --out report.html
    """
    check_file("out", out)
    check_apart("out", out)

    from experiments.report.page import write_page
    from experiments.report.sections import sections

    with console.status("gathering"):
        found = sections(folders)
        write_page(out, found, title, this_command())
    print(f"report: {out} ({len(found)} results)")
