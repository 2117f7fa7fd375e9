"""pdv figures: draw runs and a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.commands.arguments import LiveArgument, OnlyOption, SimulatedArgument, both_sides
from experiments.program.outputs import check_output
from experiments.program.progress import console
from experiments.runner.folder import check_apart


def figures(
    live: LiveArgument,
    simulated: SimulatedArgument = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Profile to draw too: stage costs, contention and acceptance \\[default: an experiment's]."
        ),
    ] = None,
    only: OnlyOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PDF and PNG files.")] = Path("figures"),
) -> None:
    """Draw live and simulated runs: load curves, lane timelines, where the latency went; and the calibration.

    Give two folders of runs, or the folder of an experiment, whose own runs and profile are taken then. Every figure
    is written as PDF (vector) and PNG, with its units and its source on it.

    Example: pdv figures runs simulated --profile profile --out figures

    Example: pdv figures results/demo --only "*-c10-*" --out figures
    """
    check_output("out", out)
    check_apart("out", out)
    lives, simulations, measured = both_sides(live, simulated, profile, only)

    from experiments.figures.draw import draw_all  # seaborn takes a second to import

    with console.status("drawing"):
        paths = draw_all(lives, simulations, measured, out)
    for path in paths:
        print(path)
