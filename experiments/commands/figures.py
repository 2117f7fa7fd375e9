"""pdv figures: draw runs and a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import InputError
from experiments.commands.arguments import (
    LiveArgument,
    OnlyOption,
    SimulatedArgument,
    both_sides,
    predicted_sides,
)
from experiments.compare.explain import Explanation, explanations
from experiments.program.outputs import check_output
from experiments.program.progress import bar, console
from experiments.runner.folder import check_apart


def figures(
    live: LiveArgument,
    simulated: SimulatedArgument = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Profile, to draw its stage costs, contention and acceptance \\[default: the experiment's]."
        ),
    ] = None,
    only: OnlyOption = None,
    predict: Annotated[
        bool,
        typer.Option(
            "--predict",
            help="Simulate the live runs now, each as a replay and blind, instead of reading simulated runs.",
        ),
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also draw the causes of the error of the mean latency (slow).")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PDF and PNG files.")] = Path("figures"),
) -> None:
    """Draw live and simulated runs: load curves, errors, lane timelines, parts of the latency, and the profile.

    Give two folders of runs, or the folder of an experiment, which has both sides and the profile. Each figure is
    written as PDF and PNG, with units, device, pair and dates.

    Example: pdv figures runs simulated --profile profile --out figures

    Example: pdv figures results/demo --only "*-c10-*" --out figures

    Example: pdv figures results/h100/fidelity --predict --explain --out figures
    """
    check_output("out", out)
    check_apart("out", out)
    if predict and simulated is not None:
        raise InputError("predict", str(simulated), "give simulated runs or --predict, not both")
    sides = predicted_sides(live, profile, only) if predict else both_sides(live, simulated, profile, only)
    lives, simulations, measured = sides
    why: list[Explanation] = []
    if explain:
        if measured is None:
            raise InputError("profile", None, "an explanation needs the profile of the simulation; give --profile")
        with bar("explaining") as progress:
            why = explanations(lives, simulations, measured, progress)

    from experiments.figures.draw import draw_all  # seaborn takes a second to import

    with console.status("drawing"):
        paths = draw_all(lives, simulations, measured, out, why)
    for path in paths:
        print(path)
