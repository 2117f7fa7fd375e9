"""pdv sweep: simulate a whole grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibrate.profile import Profile
from engines.errors import require_at_least
from experiments.compare.report import grid_table, results_console
from experiments.program.outputs import check_output
from experiments.program.progress import bar
from experiments.runner.config import Experiment
from experiments.runner.predict import Prediction, parse_acceptance
from experiments.runner.sweep import sweep as sweeping


def sweep(
    config: Annotated[str, typer.Argument(help="Experiment in TOML, or `demo` for the one that is shipped.")],
    profile: Annotated[Path, typer.Option("--profile", "-p", help="Folder that `pdv calibrate` wrote.")],
    acceptance: Annotated[str, typer.Option(help="As in pdv simulate.")] = "profile",
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Go beyond what was measured.")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", help="Processes \\[default: one a core].")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the records.")] = Path("sweep"),
) -> None:
    """Simulate every cell of an experiment's grid, in parallel. Finished cells are kept and not repeated.

    Example: pdv sweep experiments/configs/demo.toml --profile profile --out sweep
    """
    if jobs is not None:
        require_at_least("jobs", jobs, 1)
    experiment, settings = Experiment.load(config), Prediction(Profile.load(profile), parse_acceptance(acceptance))
    settings.extrapolate, settings.seed = extrapolate, experiment.seed
    settings.max_context = experiment.max_context
    check_output("out", out)
    with bar(f"{experiment.name}, simulated") as progress:
        runs = sweeping(experiment, settings, out, jobs=jobs, progress=progress)
    results_console().print(grid_table(runs))
    print(f"records: {out}")
