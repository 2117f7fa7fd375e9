"""What is left of the costs without a part of the model."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.contention import RunningSegment, fit_contention
from calibrate.profile import Profile
from engines.policy.architecture import Segment, Step
from experiments.runner.without import CostsWithout
from sim.costs import CostModel

BESIDE = [RunningSegment(Segment.DRAFT, 16, 0.02), RunningSegment(Segment.VERIFY, 80, 0.1)]


@pytest.fixture(scope="module")
def profile() -> Profile:
    return Profile.load(Path(__file__).parents[2] / "results" / "h100" / "fidelity" / "profile")


def test_without_its_differences_contention_is_the_fitted_law(profile: Profile) -> None:
    costs = CostModel(profile)
    law = CostsWithout(costs, ["contention-differences"]).contention.rates(BESIDE)
    assert law == fit_contention(profile.contention).rates(BESIDE) != costs.contention.rates(BESIDE)


def test_without_any_contention_the_law_is_gone_too(profile: Profile) -> None:
    costs = CostsWithout(CostModel(profile), ["contention-differences", "contention"])
    assert costs.contention.rates(BESIDE) == [1.0, 1.0]
    assert costs.describe()["without"] == ["contention", "contention-differences"]


def test_without_growth_host_time_is_that_of_one_request_alone(profile: Profile) -> None:
    costs = CostModel(profile)
    flat = CostsWithout(costs, ["host-growth"])
    for straight_on in (True, False):
        alone, busy = costs.host_s(Step.VERIFY, 1, straight_on, 0), costs.host_s(Step.VERIFY, 32, straight_on, 2)
        assert flat.host_s(Step.VERIFY, 32, straight_on, 2) == alone
        assert sum(alone) < sum(busy)
