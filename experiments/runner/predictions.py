"""Predictions of live runs, made now and kept nowhere: a replay and a blind simulation of each."""

from __future__ import annotations

from collections.abc import Sequence

from calibrate.profile import Profile
from engines.policy.architecture import Architecture
from engines.record.run import Run
from experiments.program.progress import Report
from experiments.runner.predict import FROM_PROFILE, AcceptanceChoice, Prediction, planned, predict, replayed


def predictions(
    lives: Sequence[Run], profile: Profile, without: Sequence[str] = (), progress: Report | None = None,
    acceptance: AcceptanceChoice = FROM_PROFILE,
) -> list[Run]:  # fmt: skip
    """Return a replay and a blind simulation of each live run.

    acceptance: that of the blind simulations. without: parts of the model that are switched off
    (experiments.runner.without.PARTS). progress: told how many simulations are done, and how many there are. Raises
    InputError, also for what the profile does not cover.
    """
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
