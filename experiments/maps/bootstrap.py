"""Profiles that the same calibration could have measured: a parametric bootstrap over the measured spread."""

from __future__ import annotations

import dataclasses

import numpy as np

from calibrate.contention import LEAST_RATE
from calibrate.profile import QUANTILES, Profile
from calibrate.profile_tables import HIGHEST_RATE

RATE_ERROR = 0.01
"""Standard error of a measured contention rate (see calibrate.measured_contention.SMOOTHING)."""
P05_TO_P95 = 3.29
"""Distance of these quantiles of a normal distribution, in standard deviations."""


def resampled(profile: Profile, seed: int) -> Profile:
    """Return the profile with every measured mean and rate redrawn within its standard error.

    A point's mean has the standard error that its quantiles and its number of repeats imply; its quantiles move with
    it. A contention rate has RATE_ERROR, and stays within what a profile can have. Host times and acceptance have no
    recorded spread and stay as they are.
    """
    draw = np.random.default_rng([seed, 0])
    costs = profile.stage_costs.copy()
    deviation = (costs["p95_ms"] - costs["p05_ms"]) / P05_TO_P95
    error = deviation / costs["mean_ms"] / np.sqrt(costs["repeats"])
    factor = 1 + error.to_numpy() * draw.standard_normal(len(costs))
    for column in (*QUANTILES, "mean_ms"):
        costs[column] *= factor
    rates = profile.contention.copy()
    rates["rate"] *= 1 + RATE_ERROR * draw.standard_normal(len(rates))
    rates["rate"] = rates["rate"].clip(LEAST_RATE, HIGHEST_RATE)
    return dataclasses.replace(profile, stage_costs=costs, contention=rates)
