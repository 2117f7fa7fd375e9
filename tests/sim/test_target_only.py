"""Speculation off: a draft length of 0 in the simulator."""

from __future__ import annotations

import dataclasses

import pytest

from engines.errors import InputError
from engines.policy.architecture import BASELINE, PD, PDV, TARGET_ONLY, Architecture, Segment
from engines.policy.draft_length import FixedDraftLength
from engines.record.metrics import PARTS, decompose, summary
from engines.workload.workload import FixedLength, make_workload
from sim.acceptance import Independent
from sim.costs import CostModel
from sim.engine import simulate
from tests.calibrate.profiles import duration_ms, made_up, stage_costs
from tests.sim.runs import QUIET, run

OFF = FixedDraftLength(0)


@pytest.mark.parametrize("architecture", [BASELINE, PD, PDV, TARGET_ONLY], ids=lambda a: a.name)
def test_each_step_emits_one_token_and_nothing_is_drafted(architecture: Architecture) -> None:
    done = run(architecture.replace(draft_length=OFF))
    assert set(done.spans["segment"]) == {"prefill_target", "verify"}
    assert (done.requests["verifications"] == done.requests["output_tokens"] - 1).all()
    assert done.requests["drafted"].sum() == 0
    parts = decompose(done)
    assert (parts[PARTS].sum(axis=1) - parts["latency_s"]).abs().max() < 1e-9
    assert parts[["draft", "draft_queue", "wasted_drafts"]].to_numpy().max() == 0


def test_acceptance_makes_no_difference() -> None:
    low, high = (run(TARGET_ONLY, acceptance=Independent(alpha)) for alpha in (0.1, 0.9))
    assert low.requests.equals(high.requests)


def test_one_client_waits_for_the_target_alone() -> None:
    """The latency of one request, from the formulas behind the profile."""
    workload = make_workload(1, FixedLength(128), FixedLength(11), concurrency=1)
    lanes = tuple(dataclasses.replace(lane, stream=0) for lane in TARGET_ONLY.lanes)
    done = simulate(TARGET_ONLY.replace(lanes=lanes), workload, QUIET, Independent(0.8), jitter=False)
    segments = done.spans.groupby("segment", sort=False)["solo_s"]
    (prefill,), verifies = (list(rows) for _, rows in segments)
    assert prefill * 1e3 == pytest.approx(duration_ms(Segment.PREFILL_TARGET, 1, 0, 128, 0))
    assert len(verifies) == 10
    for emitted, seconds in enumerate(verifies, 1):
        assert seconds * 1e3 == pytest.approx(duration_ms(Segment.VERIFY, 1, 0, 1, 128 + emitted))


def test_where_drafts_are_free_and_right_they_pay() -> None:
    alone, drafting = (summary(run(a, acceptance=Independent(1.0))) for a in (TARGET_ONLY, PD))
    assert drafting["throughput_tokens_per_s"] > 1.5 * alone["throughput_tokens_per_s"]


def test_a_profile_without_the_verify_of_one_token_is_refused() -> None:
    costs = CostModel(made_up(stage_costs=stage_costs(lengths=(2, 8))))
    with pytest.raises(
        InputError, match="verify draft_length = 0: the profile measured verify at draft_length 2 to 8"
    ):
        run(TARGET_ONLY, costs=costs)
