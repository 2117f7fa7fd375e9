"""pdv experiment: a whole grid, live and simulated. pdv demo is the one that ships."""

from __future__ import annotations

import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.errors import require_at_least, require_positive
from experiments.commands.arguments import WithoutOption
from experiments.compare.report import comparison_report, grid_table, results_console
from experiments.program.outputs import check_output
from experiments.runner.config import Experiment
from experiments.runner.experiment import Runner
from experiments.runner.live import PairBackend
from experiments.runner.preflight import check_live


class Only(StrEnum):
    """A part of an experiment."""

    LIVE = "live"
    SIMULATED = "simulated"


def experiment(
    config: Annotated[
        str,
        typer.Argument(
            help="TOML file, or the name of a configuration that is shipped: demo, "
            "quick, layouts, ablations, priorities, adaptive-high, adaptive-low."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")],
    profile: Annotated[
        Path | None,
        typer.Option("--profile", "-p", help="Simulate from this profile, whatever the configuration names."),
    ] = None,
    only: Annotated[Only | None, typer.Option(help="Do only this part now.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Processes that simulate \\[default: one per core].")
    ] = None,
    without: WithoutOption = None,
    budget_s: Annotated[
        float | None,
        typer.Option(help="Begin no live cell and no calibration later than this after the start, seconds."),
    ] = None,
) -> None:
    """Run every cell of an experiment, live, simulated or both; then compare, draw and export traces.

    What is finished is kept in the folder: interrupt the command and call it again to go on. A cell that fails is a
    row with its error in cells.csv; the others are done all the same, and the exit code is 1.

    Example: pdv experiment layouts --out results/layouts
    """
    if jobs is not None:
        require_at_least("jobs", jobs, 1)
    if budget_s is not None:
        require_positive("budget_s", budget_s)
    overrides: dict[str, Any] = {} if profile is None else {"profile": str(profile.resolve())}
    chosen = Experiment.load(config, **overrides)
    perform(chosen, out, only=only and only.value, jobs=jobs, budget_s=budget_s, without=without or ())


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path("results/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A small grid, to see the steps.")] = False,
) -> None:
    """Do everything once: serve three architectures live, calibrate, simulate the same, compare and draw.

    Minutes on two CPU cores. The same as `pdv experiment demo`: interrupt it and call it again to go on.

    Example: pdv demo --out results/demo
    """
    perform(Experiment.load("quick" if quick else "demo"), out)


def perform(chosen: Experiment, out: Path, only: str | None = None, **options: Any) -> None:
    """Run an experiment and print what came of it. Leaves with exit code 1 if a cell failed or is left."""
    check_output("out", out)
    pair, device = chosen.pair or "embedded", chosen.device or "cpu"
    command = shlex.join(["pdv", *sys.argv[1:]])
    backend = PairBackend(pair, device, chosen.max_context, command)
    runner = Runner(chosen, out, backend, only=only, command=command, **options)
    if runner.serves:
        check_live(device, pair)
    started = time.monotonic()
    outcome = runner.run()
    if outcome.comparison is not None:
        results_console().print(comparison_report(outcome.comparison))
    elif outcome.runs:
        results_console().print(grid_table(outcome.runs))
    print(f"everything is in {out}; it took {time.monotonic() - started:.0f} s")
    problems = [f"failed: {failure}" for failure in outcome.cells.failures()]
    if outcome.left:
        problems.append(f"no time was left for {outcome.left} live cells; call this again to go on")
    for problem in problems:
        typer.echo(f"pdv: {' '.join(problem.split())}", err=True)
    if problems:
        raise typer.Exit(1)
