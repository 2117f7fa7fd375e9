"""The scheduler keeps its promises under any load: the invariants, and a few stories told by hand."""

from __future__ import annotations

from hypothesis import given, settings

from engines.scheduler import Scheduler
from tests.engines.scenarios import Scenario, scenarios


@settings(max_examples=600, deadline=None)
@given(scenario=scenarios())
def test_every_invariant_holds_at_every_event(scenario: Scenario) -> None:
    record = scenario.run(Scheduler)
    assert sorted(record.requests["request"]) == [request.id for request in scenario.requests]
