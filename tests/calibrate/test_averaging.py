"""Calibrations of different times become one profile."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from calibrate.averaging import averaged
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
    one, pool = made_up(), averaged([scaled(1.0), scaled(2.0), scaled(3.0)])
    assert pool.stage_costs["mean_ms"].to_numpy() == pytest.approx(2 * one.stage_costs["mean_ms"].to_numpy())
    assert pool.stage_costs["p95_ms"].to_numpy() == pytest.approx(2 * one.stage_costs["p95_ms"].to_numpy())
    assert (pool.stage_costs["repeats"] == 3 * one.stage_costs["repeats"]).all()
    assert pool.contention["rate"].to_numpy() == pytest.approx(one.contention["rate"].to_numpy())
    assert pool.info["averaged"] == 3


def test_what_changes_with_the_machines_mood_is_averaged_and_the_rest_is_the_firsts() -> None:
    one = dataclasses.replace(made_up(), tapes={3: np.array([-1, 1, 0], dtype=np.int8)})
    other = dataclasses.replace(
        made_up(),
        host_times=one.host_times.assign(wake_up_ms=0.3, before_ms=0.25),
        contention=one.contention.assign(rate=one.contention["rate"] / 2, solo_ms=one.contention["solo_ms"] * 3),
        acceptance=one.acceptance.assign(rate=0.5),
    )
    pool = averaged([one, other])
    assert pool.host_times["wake_up_ms"].to_numpy() == pytest.approx((one.host_times["wake_up_ms"] + 0.3) / 2)
    assert pool.host_times["before_ms"].to_numpy() == pytest.approx((one.host_times["before_ms"] + 0.25) / 2)
    assert pool.contention["rate"].to_numpy() == pytest.approx(0.75 * one.contention["rate"].to_numpy())
    assert pool.contention["solo_ms"].to_numpy() == pytest.approx(2 * one.contention["solo_ms"].to_numpy())
    keys = ["group", "segment", "batch_size", "draft_length", "tokens", "context_tokens"]
    pd.testing.assert_frame_equal(pool.contention[keys], one.contention[keys])
    pd.testing.assert_frame_equal(pool.acceptance, one.acceptance)
    assert pool.tapes is one.tapes
    assert pool.info == {**one.info, "averaged": 2}


def test_a_pool_of_one_is_that_one() -> None:
    one = made_up()
    assert averaged([one]).stage_costs["mean_ms"].tolist() == pytest.approx(one.stage_costs["mean_ms"].tolist())


def test_profiles_of_other_devices_or_grids_are_not_pooled() -> None:
    one = made_up()
    others = {"device": "another", "pair": "another", "dtype": "float16", "draft_length": 5}
    for name, value in {**others, "pair_models": {"draft": {"digest": "another"}}}.items():
        with pytest.raises(InputError, match=f"profile {name}"):
            averaged([one, dataclasses.replace(one, info={**one.info, name: value})])
    fewer = dataclasses.replace(one, contention=one.contention.iloc[:2])
    with pytest.raises(InputError, match="same grid"):
        averaged([one, fewer])
