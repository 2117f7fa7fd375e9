"""pdv compare: how far simulations are from live runs, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import InputError, require_at_least
from experiments.commands.arguments import (
    LiveArgument,
    OnlyOption,
    SimulatedArgument,
    WithoutOption,
    both_sides,
    predicted_sides,
)
from experiments.compare import compare as comparing
from experiments.compare.comparable import SIMULATED, mode_of
from experiments.compare.decisions import decisions
from experiments.compare.explain import explained_path, explanations, save_explanations
from experiments.compare.fidelity import TOLERANCES, Fidelity, fidelity, fidelity_path
from experiments.compare.fidelity_report import decisions_report, explanation_report, fidelity_report, verdicts_report
from experiments.compare.report import WIDE, comparison_report, results_console
from experiments.program.outputs import check_file, check_table
from experiments.program.progress import bar
from experiments.runner.folder import check_apart
from experiments.runner.predict import parse_acceptance


def compare(
    live: LiveArgument,
    simulated: SimulatedArgument = None,
    profile: Annotated[
        Path | None,
        typer.Option(help="Profile, for the share of contention in live latencies \\[default: the experiment's]."),
    ] = None,
    only: OnlyOption = None,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict",
            help="Simulate the live runs now, each as a replay and blind, instead of reading simulated runs.",
        ),
    ] = False,
    acceptance: Annotated[
        str | None,
        typer.Option(help="Acceptance of the blind simulations, as for simulate \\[default: profile]."),
    ] = None,
    without: WithoutOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Split the error of the mean latency into its causes.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="CSV file for all metrics of all cells.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Exit with code 1 if the mean absolute throughput error exceeds this (0.1 is 10%)."),
    ] = None,
    tolerances: Annotated[
        str | None,
        typer.Option(help="Exit with code 1 if an error exceeds its limit in this table: fidelity."),
    ] = None,
) -> None:
    """Compare simulated runs with live runs, cell by cell.

    Give two folders of runs, or the folder of an experiment, which has both sides and the profile. A cell is an
    architecture, a load and a draft length.

    Errors are signed: (simulated - live) / live. The spread of the live repeats stands beside them. A replay is also
    compared with its live run request by request.

    Runs that cannot be compared are refused: runs of the wrong kind, of another device, pair or data type, and live
    runs of a cell that are not repeats of one another. If a simulation has other settings than the live run, such as
    slots or batch limits, the column `differs` names them.

    Example: pdv compare runs simulated --profile profile --tolerance 0.1 --out comparison.csv

    Example: pdv compare results/demo --only "pdv-*" --explain

    Example: pdv compare results/h100/fidelity --predict --without contention --tolerances fidelity
    """
    if tolerance is not None:
        require_at_least("tolerance", tolerance, 0)
    if tolerances is not None and tolerances not in TOLERANCES:
        raise InputError("tolerances", tolerances, f"use {', '.join(TOLERANCES)}")
    if without and not predict:
        raise InputError("without", ", ".join(without), "it changes simulations made now; add --predict")
    if acceptance is not None and (not predict or acceptance == "tape"):
        remedy = "it applies to blind simulations only; add --predict, and give rates instead of a tape"
        raise InputError("acceptance", acceptance, remedy)
    choice = parse_acceptance(acceptance or "profile")
    if predict and simulated is not None:
        raise InputError("predict", str(simulated), "give simulated runs or --predict, not both")
    if out is not None:
        check_file("out", out)
        check_table("out", comparing.paired_path(out), ("run", "quantity"))
        check_table("out", explained_path(out), ("run", "cause"))
        check_table("out", fidelity_path(out), ("mode", "throughput"))
        for path in (out, comparing.paired_path(out), explained_path(out), fidelity_path(out)):
            check_apart("out", path)
    given = (
        predicted_sides(live, profile, only, without or (), choice)
        if predict
        else both_sides(live, simulated, profile, only)
    )
    comparison = comparing.compare(*given)
    lives, simulations, known = given
    console = results_console()
    modes = {mode_of(run) for run in simulations}
    if SIMULATED in modes:
        console.print(comparison_report(comparison))
    found = fidelity(lives, simulations)
    if modes != {SIMULATED}:
        wide = results_console(WIDE)
        wide.print(fidelity_report(found), decisions_report(decisions(lives, simulations)))
    paths = comparison.save(out) if out is not None else []
    if out is not None and modes != {SIMULATED}:
        paths.append(found.save(fidelity_path(out)))
    if explain:
        if known is None:
            raise InputError("profile", None, "an explanation needs the profile of the simulation; give --profile")
        with bar("explaining") as progress:
            why = explanations(lives, simulations, known, progress)
        console.print(explanation_report(why))
        paths += [save_explanations(why, explained_path(out))] if out is not None else []
    for path in paths:
        print(f"table: {path}")
    failed = _too_far(comparison, tolerance)
    if tolerances is not None:
        failed |= not _met(found, tolerances)
    if failed:
        raise typer.Exit(1)


def _too_far(comparison: comparing.Comparison, tolerance: float | None) -> bool:
    """Return whether the throughput error is above the tolerance, and name the cells."""
    if tolerance is None or comparison.throughput_error <= tolerance:
        return False
    for cell in comparison.exceeding(tolerance):
        typer.echo(f"over the tolerance of {tolerance:.1%}: {cell}", err=True)
    return True


def _met(found: Fidelity, name: str) -> bool:
    verdicts = found.verdicts(TOLERANCES[name])
    results_console().print(verdicts_report(verdicts))
    return bool(verdicts["met"].all())
