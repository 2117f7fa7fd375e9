"""Schedulers broken on purpose. Each breaks one promise, and the invariants must notice which."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from engines.compiled import in_use
from engines.policy.scheduler import Scheduler
from tests.engines.invariants import InvariantError
from tests.engines.mutants_of_flow import FLOW
from tests.engines.mutants_of_rules import RULES
from tests.engines.scenarios import Scenario, scenarios

pytestmark = pytest.mark.skipif(in_use(), reason="no class can derive from a compiled one")
BROKEN = FLOW | RULES


def _serve_many(scheduler_type: type[Scheduler]) -> None:
    """The property of test_scheduler, on examples that are the same in every run, without shrinking."""

    @settings(
        max_examples=1500,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(scenario=scenarios())
    def every_scenario(scenario: Scenario) -> None:
        scenario.run(scheduler_type)

    every_scenario()


@pytest.mark.parametrize(("broken", "rules"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_scheduler_broken_on_purpose_is_caught(broken: type[Scheduler], rules: tuple[str, ...]) -> None:
    with pytest.raises(InvariantError) as caught:
        _serve_many(broken)
    assert caught.value.rule in rules
