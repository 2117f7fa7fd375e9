"""Calibrations of different times become one profile."""

from __future__ import annotations

import dataclasses

import pytest

from calibrate.pooling import pooled
from calibrate.profile import Profile
from engines.errors import InputError
from tests.calibrate.profiles import made_up


def scaled(factor: float) -> Profile:
    profile = made_up()
    costs = profile.stage_costs.copy()
    columns = [column for column in costs if column.endswith("_ms")]
    costs[columns] = costs[columns] * factor
    return dataclasses.replace(profile, stage_costs=costs)


def test_durations_are_averaged_and_repeats_added() -> None:
    one, pool = made_up(), pooled([scaled(1.0), scaled(2.0), scaled(3.0)])
    assert pool.stage_costs["mean_ms"].to_numpy() == pytest.approx(2 * one.stage_costs["mean_ms"].to_numpy())
    assert pool.stage_costs["p95_ms"].to_numpy() == pytest.approx(2 * one.stage_costs["p95_ms"].to_numpy())
    assert (pool.stage_costs["repeats"] == 3 * one.stage_costs["repeats"]).all()
    assert pool.contention["rate"].to_numpy() == pytest.approx(one.contention["rate"].to_numpy())
    assert pool.info["pooled"] == 3


def test_a_pool_of_one_is_that_one() -> None:
    one = made_up()
    assert pooled([one]).stage_costs["mean_ms"].tolist() == pytest.approx(one.stage_costs["mean_ms"].tolist())


def test_profiles_of_other_devices_or_grids_are_not_pooled() -> None:
    one = made_up()
    with pytest.raises(InputError, match="profile device"):
        pooled([one, dataclasses.replace(one, info={**one.info, "device": "another"})])
    with pytest.raises(InputError, match="profile pair_models"):
        pooled([one, dataclasses.replace(one, info={**one.info, "pair_models": {"draft": {"digest": "another"}}})])
    fewer = dataclasses.replace(one, contention=one.contention.iloc[:2])
    with pytest.raises(InputError, match="same grid"):
        pooled([one, fewer])
