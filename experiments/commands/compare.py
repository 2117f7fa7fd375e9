"""pdv compare: how far simulations are from live runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import require_at_least
from experiments.commands.arguments import LiveArgument, OnlyOption, SimulatedArgument, both_sides
from experiments.compare import compare as comparing
from experiments.compare.report import comparison_report, results_console
from experiments.program.outputs import check_file, check_table
from experiments.runner.folder import check_apart


def compare(
    live: LiveArgument,
    simulated: SimulatedArgument = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Profile whose solo times make contention visible in live runs too \\[default: an experiment's]."
        ),
    ] = None,
    only: OnlyOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV file for every metric of every cell.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if the mean absolute throughput error is above it (0.1 is 10 %)."),
    ] = None,
) -> None:
    """Compare simulated runs with live ones, cell by cell (architecture, load, draft length).

    Give two folders of runs, or the folder of an experiment, whose own runs and profile are taken then.

    Errors are signed, (simulated - live) / live; the spread of the live repeats stands beside them. Simulations
    made with --replay are compared request by request as well, with the very run that they replay.

    Refused are runs of the wrong kind, of another device, pair or data type, and live runs of a cell that are no
    repeats of one another. Where a simulation has other settings than the live run (seed, lengths, slots, batch
    limits, ...), the tables name them in `differs`.

    Example: pdv compare runs simulated --profile profile --tolerance 0.1 --out comparison.csv

    Example: pdv compare results/demo --only "pdv-*"
    """
    if tolerance is not None:
        require_at_least("tolerance", tolerance, 0)
    if out is not None:
        check_file("out", out)
        check_table("out", comparing.paired_path(out), ("run", "quantity"))
        for path in (out, comparing.paired_path(out)):
            check_apart("out", path)
    comparison = comparing.compare(*both_sides(live, simulated, profile, only))
    results_console().print(comparison_report(comparison))
    if out is not None:
        for path in comparison.save(out):
            print(f"table: {path}")
    if tolerance is not None and not comparison.throughput_error <= tolerance:
        for cell in comparison.exceeding(tolerance):
            typer.echo(f"over the tolerance of {tolerance:.1%}: {cell}", err=True)
        raise typer.Exit(1)
