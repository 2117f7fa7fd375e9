"""pdv experiment: a whole grid, live and simulated. pdv demo is the one that ships."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from engines.errors import require_at_least, require_positive
from experiments.commands.arguments import WithoutOption, config_argument
from experiments.compare.report import comparison_report, grid_table, results_console
from experiments.program.outputs import check_output
from experiments.program.provenance import this_command
from experiments.runner.config import CONFIGS, Experiment
from experiments.runner.experiment import Runner
from experiments.runner.live import PairBackend
from experiments.runner.preflight import check_live


class Only(StrEnum):
    """A part of an experiment."""

    LIVE = "live"
    SIMULATED = "simulated"


def experiment(
    config: Annotated[str, config_argument(CONFIGS)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")],
    profile: Annotated[
        Path | None,
        typer.Option("--profile", "-p", help="Simulate from this profile instead of the configuration's."),
    ] = None,
    only: Annotated[Only | None, typer.Option(help="Run only this side.")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Parallel simulations \\[default: one per core].")
    ] = None,
    without: WithoutOption = None,
    budget_s: Annotated[
        float | None,
        typer.Option(help="Start no live cell and no calibration after this many seconds."),
    ] = None,
) -> None:
    """Run all cells of an experiment, live, simulated or both, then compare and plot them.

    Finished cells are kept: interrupt the command and run it again to resume. If a cell fails, its row in cells.csv
    gives the error, the other cells still run, and the exit code is 1.

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
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("results/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Run a smaller grid, just to see the steps.")] = False,
) -> None:
    """Run the whole study once: serve three architectures live, calibrate, simulate, compare and plot.

    Takes minutes on two CPU cores. Same as `pdv experiment demo`: interrupt it and run it again to resume.

    Example: pdv demo --out results/demo
    """
    perform(Experiment.load("quick" if quick else "demo"), out)


def perform(chosen: Experiment, out: Path, only: str | None = None, **options: Any) -> None:
    """Run an experiment and print what came of it. Leaves with exit code 1 if a cell failed or is left."""
    check_output("out", out)
    pair, device = chosen.pair or "embedded", chosen.device or "cpu"
    command = this_command()
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
    print(f"results: {out}; took {time.monotonic() - started:.0f} s")
    problems = [f"failed: {failure}" for failure in outcome.cells.failures()]
    if outcome.left:
        problems.append(f"{outcome.left} live cells did not fit in the budget; run the command again to resume")
    for problem in problems:
        typer.echo(f"pdv: {' '.join(problem.split())}", err=True)
    if problems:
        raise typer.Exit(1)
