"""How many drafts the target accepts: measured, and what simple models of it would predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from calibrate.profile import Profile
from engines.run import Run
from experiments.figures import style

MEASURED, INDEPENDENT, SPREAD = "#333333", style.SEGMENT_COLOURS["draft"], style.SEGMENT_COLOURS["verify"]


@style.themed
def acceptance(profile: Profile, lives: Sequence[Run], folder: Path, name: str = "acceptance") -> list[Path]:
    """Left: the unconditional probability that the first i drafts are all accepted, from calibration and from the
    steps of the live runs, beside two models that only know alpha (independent) and alpha's spread over requests.
    Right: alpha of each request, from the live runs or else the profile's tapes."""
    figure, axes = style.canvas(2, width=4.2, height=3.2)
    _positions(axes[0][0], profile.acceptance, lives)
    _requests(axes[0][1], profile, lives)
    return style.save(figure, folder, name, style.source(lives, profile.info))


def independent_rates(alpha: float, positions: int) -> np.ndarray:
    """[positions] alpha^i: every draft is right with the same probability."""
    return alpha ** np.arange(1, positions + 1)


def spread_rates(alpha_mean: float, alpha_sd: float, positions: int) -> np.ndarray:
    """[positions] E[alpha^i] where alpha of a request follows a beta distribution with this mean and standard
    deviation: the product of (a + j) / (a + b + j) for j below i."""
    largest = 0.999 * np.sqrt(alpha_mean * (1 - alpha_mean))  # no beta distribution spreads further
    sd = min(alpha_sd, largest)
    if sd <= 0:
        return independent_rates(alpha_mean, positions)
    total = alpha_mean * (1 - alpha_mean) / sd**2 - 1
    j = np.arange(positions)
    return np.cumprod((alpha_mean * total + j) / (total + j))


def measured_rates(lives: Sequence[Run]) -> pd.Series:
    """By position i, the share of verify steps that had at least i drafts and accepted the first i. Steps that an
    end of output cut short are left out, since their drafts were never judged."""
    steps = pd.concat([run.steps for run in lives]) if lives else pd.DataFrame(columns=["emitted"])
    steps = steps[steps["emitted"] > 0]
    steps = steps[(steps["draft_length"] > 0) & (steps["discarded"] == 0)]
    positions = range(1, int(steps["draft_length"].max()) + 1) if len(steps) else range(0)
    judged = {i: steps[steps["draft_length"] >= i] for i in positions}
    return pd.Series({i: float((rows["accepted"] >= i).mean()) for i, rows in judged.items()}, dtype=float)


def request_alphas(profile: Profile, lives: Sequence[Run]) -> pd.Series:
    """alpha of each request: of the drafts that the target judged, those it accepted. A request that several runs
    served is counted once, over all of them."""
    if lives:
        steps = pd.concat([run.steps for run in lives])
        per_request = steps.assign(wrong=steps["rejected"] > 0).groupby("request")[["accepted", "wrong"]].sum()
        judged = per_request["accepted"] + per_request["wrong"]
        return (per_request["accepted"] / judged.where(judged > 0)).dropna()
    return pd.Series({i: float(tape[tape >= 0].mean()) for i, tape in profile.tapes.items() if (tape >= 0).any()})


def _positions(panel: Axes, table: pd.DataFrame, lives: Sequence[Run]) -> None:
    table = table.sort_values("position")
    mean, sd = float(table["alpha_mean"].iloc[0]), float(table["alpha_sd"].iloc[0])
    live = measured_rates(lives)
    places = np.arange(1, max(int(table["position"].max()), len(live)) + 1)
    panel.plot(
        places, independent_rates(mean, len(places)), "--", color=INDEPENDENT, label=f"independent, alpha {mean:.2f}"
    )
    panel.plot(
        places, spread_rates(mean, sd, len(places)), "-", color=SPREAD,
        label=f"spread over requests, {mean:.2f} ± {sd:.2f}",
    )  # fmt: skip
    panel.plot(table["position"], table["rate"], "o", color=MEASURED, label="measured in calibration")
    if len(live):
        panel.plot(live.index, live, "x", color=MEASURED, markersize=7, label="measured in the live runs")
    panel.set(xlabel="draft position i", ylabel="P(first i drafts accepted)", ylim=(0, 1))
    panel.set_xticks(places)
    panel.legend(fontsize=7, frameon=True)


def _requests(panel: Axes, profile: Profile, lives: Sequence[Run]) -> None:
    alphas = request_alphas(profile, lives)
    if len(alphas):
        sns.histplot(x=alphas, bins=np.linspace(0, 1, 21), color=INDEPENDENT, ax=panel)
        panel.axvline(float(alphas.mean()), color=MEASURED, linestyle="--", label=f"mean {alphas.mean():.2f}")
        panel.legend(fontsize=7)
    panel.set(xlabel="alpha of a request", ylabel="requests", xlim=(0, 1))
