"""Average several calibrations of one device and pair. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from calibrate.profile import KEY, Profile
from engines.errors import InputError

SAME = ("device", "pair", "pair_models", "dtype", "draft_length")


def averaged(profiles: Sequence[Profile]) -> Profile:
    """Return the mean of profiles measured at different times, to average out drift of the machine.

    Durations, quantiles, host times and rates are averaged point by point, and repeats are summed. Acceptance and
    tapes, which drift does not change, are those of the first profile. Raises InputError if device, pair, data type,
    draft length or points differ between the profiles.
    """
    first = profiles[0]
    for name in SAME:
        values = {str(profile.info.get(name)) for profile in profiles}
        if len(values) > 1:
            raise InputError(f"profile {name}", sorted(values), "average calibrations of one device and pair")
    costs = _mean([profile.stage_costs for profile in profiles], KEY)
    costs["repeats"] = sum(profile.stage_costs["repeats"].to_numpy() for profile in profiles)
    contention = _mean([profile.contention for profile in profiles], ["group", *KEY])
    host_times = _mean([profile.host_times for profile in profiles], ["step"])
    info = {**first.info, "averaged": len(profiles)}
    return Profile(info, costs, host_times, contention, first.acceptance, first.tapes)


def _mean(tables: Sequence[pd.DataFrame], key: list[str]) -> pd.DataFrame:
    """Return the mean of the non-key columns of tables that have the same rows, identified by the key."""
    indexed = [table.set_index(key) for table in tables]
    for table in indexed[1:]:
        if not table.index.equals(indexed[0].index):
            raise InputError("profile", f"{len(tables)} profiles", "average calibrations of the same grid")
    mean = pd.concat([table.assign(row=range(len(table))) for table in indexed]).groupby("row").mean()
    mean.index = indexed[0].index
    return mean.reset_index()[list(tables[0].columns)]
