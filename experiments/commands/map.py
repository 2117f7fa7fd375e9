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
from experiments.program.provenance import note_call, this_command


def map_(
    question: Annotated[str, typer.Argument(help=f"One of {', '.join(MAPS)}.")],
    profile: Annotated[Path, typer.Option("--profile", "-p", help="Folder of a profile, from `pdv calibrate`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the tables and figures.")],
    replicates: Annotated[
        int, typer.Option("--replicates", "-n", help="Number of seeds, at least 2. Each draws its own calibration.")
    ] = 8,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Parallel simulations \\[default: one per core].")
    ] = None,
) -> None:
    """Map where speculation, a third lane or a priority order pays. Needs no torch and no device.

    Each cell compares its options with the same seeds. A cell is hatched if the winner changes with the seed, or with
    calibrations drawn within the spread of the profile's measurements. Writes a Parquet table, a PDF and a PNG per
    panel.

    Example: pdv map speculation --profile results/h100/speculation/profile --out maps
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
    note_call(out, this_command())
    for panel, found in tables.items():
        print(f"{question}-{panel}: {len(found)} cells, gain {found['gain'].min():.2f} to {found['gain'].max():.2f}, "
              f"{int((found['open'] | found['gain_open']).sum())} open")  # fmt: skip
