"""How many drafts the target accepts: measured, and as drawn by the simulator's acceptance models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from calibrate.profile import Profile
from engines.policy.request import Request
from engines.record.run import Run
from experiments.figures import style
from sim.acceptance import AcceptanceSource
from sim.acceptance_fits import fit_markov, from_profile

MEASURED = "#333333"
LOOKS = {"independent": "--", "per-request spread": "-", "markov": ":"}
DRAWN_REQUESTS, DRAWN_TOKENS = 400, 65
"""Sample size for the models' rates: about 8,000 steps, so that the standard error is below 0.006."""


@style.themed
def acceptance(profile: Profile, lives: Sequence[Run], folder: Path, name: str = "acceptance") -> list[Path]:
    """Draw acceptance by position and by request.

    Left: the unconditional probability that the first i drafts are all accepted, from the calibration, from the steps
    of the live runs, and as the simulator's models draw it. Right: alpha of each request, from the live runs or else
    the profile's tapes.
    """
    figure, axes = style.canvas(2, height=2.7)
    _positions(axes[0][0], profile, lives)
    _requests(axes[0][1], request_alphas(profile, lives))
    return style.save(figure, folder, name, style.source(lives, profile.info))


def drawn_rates(source: AcceptanceSource, positions: int) -> np.ndarray:
    """Return P(first i drafts accepted), [positions], over steps drawn from this source as in the simulator.

    The steps follow one another and have `positions` drafts each.
    """
    reached, steps = np.zeros(positions), 0
    for request in range(DRAWN_REQUESTS):
        matches = source.acceptance(Request(request, 1, DRAWN_TOKENS), seed=0).matches
        position = 1
        while position + positions <= DRAWN_TOKENS:
            matched = min(matches[position], positions)
            reached[:matched] += 1
            steps += 1
            position += matched + 1
    return reached / steps


def measured_rates(lives: Sequence[Run]) -> pd.Series:
    """Return, for each position i, the share of verify steps with at least i drafts that accepted the first i.

    Steps cut short by the end of the output are excluded, since some of their drafts were never judged.
    """
    if not lives:
        return pd.Series(dtype=float)
    steps = pd.concat([run.steps for run in lives])
    steps = steps[(steps["emitted"] > 0) & (steps["draft_length"] > 0) & (steps["discarded"] == 0)]
    positions = range(1, int(steps["draft_length"].max()) + 1) if len(steps) else range(0)
    judged = {i: steps[steps["draft_length"] >= i] for i in positions}
    return pd.Series({i: float((rows["accepted"] >= i).mean()) for i, rows in judged.items()}, dtype=float)


def request_alphas(profile: Profile, lives: Sequence[Run]) -> pd.Series:
    """Return the alpha of each request: the share of accepted drafts among those that the target judged.

    A request served by several runs is counted once, over all of them.
    """
    if lives:
        steps = pd.concat([run.steps for run in lives])
        per_request = steps.assign(wrong=steps["rejected"] > 0).groupby("request")[["accepted", "wrong"]].sum()
        judged = per_request["accepted"] + per_request["wrong"]
        return (per_request["accepted"] / judged.where(judged > 0)).dropna()
    return pd.Series({i: float(tape[tape >= 0].mean()) for i, tape in profile.tapes.items() if (tape >= 0).any()})


def _models(profile: Profile) -> Mapping[str, AcceptanceSource]:
    models = {name: from_profile(profile, name) for name in ("independent", "per-request spread")}
    return models | ({"markov": fit_markov(profile.tapes)} if profile.tapes else {})


def _positions(panel: Axes, profile: Profile, lives: Sequence[Run]) -> None:
    table, live = profile.acceptance, measured_rates(lives)
    places = np.arange(1, max(int(table["position"].max()), len(live)) + 1)
    for name, source in _models(profile).items():
        panel.plot(places, drawn_rates(source, len(places)), LOOKS[name], color=style.MODEL_COLOURS[name], label=name)
    panel.plot(table["position"], table["rate"], "o", color=MEASURED, label="measured, calibration")
    if len(live):
        panel.plot(live.index, live, "x", color=MEASURED, markersize=7, label="measured, live runs")
    panel.set(xlabel="draft position i", ylabel="P(first i drafts accepted)", ylim=(0, 1.02))
    panel.set_xticks(places)
    mean, sd = float(table["alpha_mean"].iloc[0]), float(table["alpha_sd"].iloc[0])
    panel.set_title(f"calibration: alpha {mean:.2f} ± {sd:.2f} over requests", fontsize=7.5, loc="left")
    panel.legend(fontsize=6, loc="lower left")


def _requests(panel: Axes, alphas: pd.Series) -> None:
    if len(alphas):
        sns.histplot(x=alphas, bins=np.linspace(0, 1, 21), color=style.MODEL_COLOURS["independent"], ax=panel)
        panel.axvline(float(alphas.mean()), color=MEASURED, linestyle="--")
        panel.set_title(f"{len(alphas)} requests, mean {alphas.mean():.2f}", fontsize=7.5, loc="left")
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="alpha of a request", ylabel="requests", xlim=(0, 1))
