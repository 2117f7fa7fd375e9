"""A feature of the simulator that is off, or never reached, changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from engines.policy.architecture import BASELINE, PD, PDV, Architecture
from engines.policy.draft_length import AdaptiveDraftLength
from engines.record.run import Run
from engines.workload.workload import FixedLength, make_workload
from sim.acceptance import PerPosition
from tests.sim.runs import QUIET, SURE, run, same, thinking

OFF: dict[str, tuple[Callable[[], Run], Callable[[], Run]]] = {
    "verify first": (
        lambda: run(PDV.replace(verify_first_above=10**6)),
        lambda: run(PDV.replace(verify_first_above=None)),
    ),
    "context limit": (lambda: run(PD, max_context=10**6), lambda: run(PD)),
    "queue limit": (lambda: run(PD.replace(queue_limit=10**6)), lambda: run(PD)),
    "permits": (lambda: run(PD.replace(permits=2)), lambda: run(PD)),
    "slots": (lambda: run(PD.replace(slots=5)), lambda: run(PD)),
    "jitter": (
        lambda: run(PD, acceptance=SURE, jitter=False, seed=7),
        lambda: run(PD, acceptance=SURE, jitter=False),
    ),
    "contention": (lambda: run(BASELINE), lambda: run(BASELINE, costs=QUIET)),
    "progress": (lambda: run(PDV, progress=lambda done, total: None), lambda: run(PDV)),
    "think time": (lambda: run(PD, thinking(0.0)), lambda: run(PD)),
    "adaptive": (lambda: run(PD.replace(draft_length=AdaptiveDraftLength(4, 4))), lambda: run(PD)),
    "per position": (lambda: run(PD, acceptance=PerPosition((0.7,))), lambda: run(PD)),
    "hybrid": (
        lambda: run(pair(hybrid=1), PAIR, acceptance=SURE),
        lambda: run(pair(hybrid=0), PAIR, acceptance=SURE),
    ),
}


REACHED: dict[str, tuple[Callable[[], Run], Callable[[], Run]]] = {
    "context limit": (lambda: run(PD, max_context=300), lambda: run(PD)),
    "queue limit": (lambda: run(PD.replace(queue_limit=1)), lambda: run(PD)),
    "permits": (lambda: run(PD.replace(permits=1)), lambda: run(PD)),
    "slots": (lambda: run(PD.replace(slots=4)), lambda: run(PD)),
    "jitter": (lambda: run(PD, jitter=False), lambda: run(PD)),
    "contention": (lambda: run(PD), lambda: run(PD, costs=QUIET)),
    "think time": (lambda: run(PD, thinking(0.01)), lambda: run(PD)),
    "adaptive": (lambda: run(PD.replace(draft_length=AdaptiveDraftLength())), lambda: run(PD)),
    "per position": (lambda: run(PD, acceptance=PerPosition((0.7, 0.3))), lambda: run(PD)),
    "hybrid": (
        lambda: run(pair(hybrid=2), PAIR, acceptance=SURE),
        lambda: run(pair(hybrid=0), PAIR, acceptance=SURE),
    ),
}


# Two requests, both admitted at once, whose last draft starts while both are there: one active is never seen.
PAIR = make_workload(2, FixedLength(50), FixedLength(40), concurrency=2)


def pair(hybrid: int) -> Architecture:
    lanes = tuple(replace(lane, workers=2 if lane.name == "prefill" else 1) for lane in PDV.lanes)
    return PDV.replace(lanes=lanes, hybrid_at_or_below=hybrid)


@pytest.mark.parametrize("feature", OFF)
def test_a_feature_that_is_off_changes_nothing(feature: str) -> None:
    on, off = OFF[feature]
    assert same(on(), off())


@pytest.mark.parametrize("feature", REACHED)
def test_a_feature_that_is_reached_changes_something(feature: str) -> None:
    on, off = REACHED[feature]
    assert not same(on(), off())
