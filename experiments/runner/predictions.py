"""Predictions of live runs, made now and kept nowhere: a replay and a blind simulation of each."""

from __future__ import annotations

from collections.abc import Sequence

from calibrate.profile import Profile
from engines.errors import InputError
from engines.pairs.permutation import without_alpha
from engines.policy.architecture import Architecture
from engines.record.run import Run
from experiments.program.progress import Report
from experiments.runner.predict import (
    CLOSED_FORM,
    FROM_PROFILE,
    AcceptanceChoice,
    Prediction,
    planned,
    predict,
    replayed,
)


def predictions(
    lives: Sequence[Run], profile: Profile, without: Sequence[str] = (), progress: Report | None = None,
    acceptance: AcceptanceChoice = FROM_PROFILE,
) -> list[Run]:  # fmt: skip
    """Return a replay and a blind simulation of each live run.

    acceptance: that of the blind simulations. without: parts of the model that are switched off
    (experiments.runner.without.PARTS). progress: told how many simulations are done, and how many there are. Raises
    InputError, also for what the profile does not cover.
    """
    _check_acceptance(lives, profile, acceptance)
    replays, blind = (
        Prediction(profile, choice, without=without) for choice in (AcceptanceChoice("tape"), acceptance)
    )
    blind.share_costs(replays)
    made = []
    for live in lives:
        architecture, seed = Architecture.from_dict(live.info["architecture"]), live.info["workload"].get("seed", 0)
        made.append(predict(architecture, replayed(live), replays.with_seed(seed), live=live))
        made.append(predict(architecture, planned(live), blind.with_seed(seed)))
        made[-2].info["name"], made[-1].info["name"] = f"{live.name}-replay", f"{live.name}-blind"
        if progress is not None:
            progress(len(made), 2 * len(lives))
    return made


def _check_acceptance(lives: Sequence[Run], profile: Profile, acceptance: AcceptanceChoice) -> None:
    """Raise InputError if the acceptance would be that of a pair with other alphas than a live run's."""
    known = str(profile.info.get("pair"))
    for live in lives:
        pair = str(live.info.get("pair", known))
        other_alphas = pair != known and without_alpha(pair) == without_alpha(known)
        if other_alphas and acceptance in (FROM_PROFILE, CLOSED_FORM):
            remedy = f"the profile is of {known}, {live.name} of {pair}; give numbers, such as 0.6 or 0.6+-0.2"
            raise InputError("acceptance", acceptance.kind, remedy)
