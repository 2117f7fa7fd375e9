"""pdv figures: draw runs and a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibrate.profile import Profile
from experiments.program.outputs import check_output
from experiments.program.progress import console
from experiments.runner.cells import load_runs


def figures(
    live: Annotated[Path, typer.Argument(help="A live run's folder, or a folder of them (repeats included).")],
    simulated: Annotated[Path, typer.Argument(help="A simulated run's folder, or a folder of them.")],
    profile: Annotated[
        Path | None, typer.Option(help="Profile to draw too: stage costs, contention and acceptance.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the PDF and PNG files.")] = Path("figures"),
) -> None:
    """Draw live and simulated runs: load curves, lane timelines, where the latency went; and the calibration.

    Every figure is written as PDF (vector) and PNG, with its units and its source on it.

    Example: pdv figures runs simulated --profile profile --out figures
    """
    check_output("out", out)
    lives, simulations = load_runs("live", live), load_runs("simulated", simulated)
    measured = Profile.load(profile) if profile is not None else None

    from experiments.figures import draw_all  # seaborn takes a second to import, which other commands can do without

    with console.status("drawing"):
        paths = draw_all(lives, simulations, measured, out)
    for path in paths:
        print(path)
