"""How a command that served requests ends."""

from __future__ import annotations

from pathlib import Path

import typer

from engines.record.run import Run
from experiments.compare.report import print_summary


def conclude(run: Run, folder: Path) -> None:
    """Print the summary. If no request finished, print the first error on standard error and exit with code 1."""
    print_summary(run, folder)
    if run.finished.empty:
        errors = run.requests.loc[run.requests["error"] != "", "error"]
        first = " ".join(next(iter(errors), "none recorded").split())
        typer.echo(f"pdv: no request finished; the first error: {first}", err=True)
        raise typer.Exit(1)
