"""pdv sweep: simulate a grid of settings, and write one table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.errors import require_at_least
from experiments.commands.arguments import config_argument
from experiments.compare.report import results_console
from experiments.program.outputs import check_output
from experiments.program.provenance import this_command
from experiments.sweep.config import CONFIGS, Sweep
from experiments.sweep.report import failures, notes, summary_report
from experiments.sweep.store import FIGURES, ROWS, SUMMARY
from experiments.sweep.sweep import run_sweep
from experiments.sweep.workers import Backend


def sweep(
    config: Annotated[str, config_argument(CONFIGS)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables.")],
    profile: Annotated[
        Path | None,
        typer.Option("--profile", "-p", help="Simulate from this profile instead of the configuration's."),
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Simulations per cell, instead of the configuration's.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Parallel simulations \\[default: one per core].")
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="Run simulations in processes on this machine or on a Ray cluster.")
    ] = Backend.PROCESSES,
    records: Annotated[bool, typer.Option("--records", help="Also save the record of every run.")] = False,
    figures: Annotated[bool, typer.Option("--figures", help="Also draw the sweep, into OUT/figures.")] = False,
) -> None:
    """Simulate many cells, each several times, into rows.parquet and summary.parquet.

    Finished simulations are kept: interrupt or kill the command and run it again to resume. If a cell fails, its row
    gives the error, the other cells still run, and the exit code is 1.

    Example: pdv sweep limits --out results/limits --figures
    """
    for name, value in (("repeats", repeats), ("jobs", jobs)):
        if value is not None:
            require_at_least(name, value, 1)
    given = {"profile": None if profile is None else str(profile.resolve()), "repeats": repeats}
    overrides: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    chosen = Sweep.load(config, **overrides)
    check_output("out", out)
    started = time.monotonic()
    outcome = run_sweep(chosen, out, jobs=jobs, backend=backend, records=records, command=this_command())
    results_console().print(summary_report(chosen, outcome.summary))
    for note in notes(outcome.rows):
        print(note)
    seconds = time.monotonic() - started
    print(f"{len(outcome.rows)} rows in {out / ROWS}, {len(outcome.summary)} cells in {out / SUMMARY}; "
          f"{outcome.simulations} simulations in {seconds:.0f} s")  # fmt: skip
    if figures:
        from experiments.sweep.figures import draw  # seaborn takes a second to import

        for path in draw(chosen, outcome.rows, out / FIGURES):
            print(path)
    problems = failures(outcome.summary)
    for problem in problems:
        typer.echo(f"pdv: {' '.join(problem.split())}", err=True)
    if problems:
        raise typer.Exit(1)
