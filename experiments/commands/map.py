"""pdv map: answer one question over two axes, from a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from calibrate.profile import Profile
from engines.errors import InputError, require_at_least
from experiments.maps.questions import MAPS
from experiments.program.outputs import check_output
from experiments.program.progress import bar


def map_(
    question: Annotated[str, typer.Argument(help=f"Which map: {', '.join(MAPS)}.")],
    profile: Annotated[Path, typer.Option("--profile", "-p", help="Folder that `pdv calibrate` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables and figures.")],
    replicates: Annotated[
        int, typer.Option("--replicates", "-n", help="Seeds, each with a calibration of its own.")
    ] = 8,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Simulations at once \\[default: one per core].")
    ] = None,
) -> None:
    """Map where speculation, a third lane or a priority order pays. Needs no torch and no device.

    Every cell compares its options with the same seeds. Cells are hatched in which seeds, or calibrations drawn
    within the spread of the profile's measurements, leave the winner open. Writes a Parquet table, a PDF and a PNG
    per panel.

    Example: pdv map speculation --profile profile --out maps
    """
    if question not in MAPS:
        raise InputError("question", question, f"use {', '.join(MAPS)}")
    require_at_least("replicates", replicates, 2)
    if jobs is not None:
        require_at_least("jobs", jobs, 1)
    measured = Profile.load(profile)
    check_output("out", out)
    from experiments.maps.run import run_map  # seaborn takes a second to import

    with bar(question) as progress:
        tables = run_map(MAPS[question](), measured, out, replicates, jobs or -1, progress)
    for panel, found in tables.items():
        print(f"{question}-{panel}: {len(found)} cells, gain {found['gain'].min():.2f} to {found['gain'].max():.2f}, "
              f"{int((found['open'] | found['gain_open']).sum())} open")  # fmt: skip
