"""Figures of runs and profiles, each saved as PDF (vector) and PNG with its source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibrate.profile import Profile
from engines.record.run import Run
from experiments.compare.comparable import check_profile, own_of, sides
from experiments.compare.explain import Explanation
from experiments.compare.solo_times import with_solo_times
from experiments.figures.acceptance import acceptance
from experiments.figures.calibration import contention, stage_costs
from experiments.figures.decomposition import decomposition
from experiments.figures.errors import errors_over_load
from experiments.figures.explained import explained
from experiments.figures.fidelity import error_distribution, predicted_against_measured
from experiments.figures.load import load_curves
from experiments.figures.timeline import timeline
from experiments.runner.cells import cell_of
from sim.costs import CostModel

__all__ = [
    "acceptance",
    "busiest",
    "contention",
    "decomposition",
    "draw_all",
    "error_distribution",
    "errors_over_load",
    "explained",
    "load_curves",
    "predicted_against_measured",
    "stage_costs",
    "timeline",
]


def draw_all(
    lives: Sequence[Run],
    simulations: Sequence[Run],
    profile: Profile | None,
    folder: Path,
    why: Sequence[Explanation] = (),
) -> list[Path]:
    """Draw every figure that the runs and the profile allow. why: explanations of the errors, to draw them too.

    Each architecture gets a timeline at its busiest load, from the first live run and its simulation. Raises
    InputError for runs that cannot be compared (experiments.compare.comparable), and for a profile of another device
    or pair.
    """
    sides(lives, simulations)
    paths: list[Path] = []
    if profile is not None:
        check_profile(profile, lives)
        costs = CostModel(profile, extrapolate=True)
        lives = [with_solo_times(run, costs) for run in lives]
        paths += stage_costs(profile, costs, folder)
        paths += contention(profile, folder)
        paths += acceptance(profile, lives, folder)
    paths += error_distribution(lives, simulations, folder)
    paths += errors_over_load(lives, simulations, folder)
    paths += predicted_against_measured(lives, simulations, folder)
    paths += explained(why, folder) if why else []
    paths += load_curves(lives, simulations, folder)
    paths += decomposition(lives, simulations, folder)
    for live, simulated in busiest(lives, simulations):
        paths += timeline([live, simulated], folder, name=f"timeline_{cell_of(live).architecture}")
    return paths


def busiest(lives: Sequence[Run], simulations: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return a live and a simulated run per architecture, at the highest load that both sides have."""
    simulated = {cell_of(run): run for run in reversed(simulations)}
    simulated |= {cell_of(run): run for run in reversed(own_of(simulations))}
    pairs: dict[str, tuple[Run, Run]] = {}
    for live in sorted(lives, key=lambda run: cell_of(run).level, reverse=True):
        cell = cell_of(live)
        if cell in simulated and cell.architecture not in pairs:
            pairs[cell.architecture] = (live, simulated[cell])
    return list(pairs.values())
