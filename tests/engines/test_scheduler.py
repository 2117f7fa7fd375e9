"""The scheduler keeps its promises under any load: the invariants, and a few stories told by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings

from engines.policy.architecture import BASELINE, PD, PDV, Stage, Step
from engines.policy.batch import Batch, Wait
from engines.policy.draft_length import FixedDraftLength
from engines.policy.request import Emission, Request, Status
from engines.policy.scheduler import Scheduler
from engines.record.metrics import PARTS, decompose
from tests.driver import drive
from tests.engines.scenarios import FOURTH, Scenario, scenarios


@settings(max_examples=4 * settings.default.max_examples, deadline=None)
@given(scenario=scenarios())
def test_every_invariant_holds_at_every_event(scenario: Scenario) -> None:
    record = scenario.run(Scheduler)
    assert sorted(record.requests["request"]) == [request.id for request in scenario.requests]


@settings(max_examples=max(10, settings.default.max_examples * 3 // 10), deadline=None)
@given(scenario=scenarios())
def test_the_parts_of_every_latency_sum_to_it(scenario: Scenario) -> None:
    parts = decompose(scenario.run(Scheduler))
    np.testing.assert_allclose(parts[PARTS].sum(axis=1), parts["latency_s"], atol=1e-9)
    assert (parts >= -1e-9).all(axis=None)


def _requests(count: int, max_tokens: int = 9) -> list[Request]:
    return [Request(i, 10, max_tokens, 0.0) for i in range(count)]


def _steps(scheduler: Scheduler, requests: list[Request]) -> list[tuple[float, str, int]]:
    """(time, step, batch size) of every batch, with prefills of 1 s and all other steps of 2 s."""
    started: list[tuple[float, str, int]] = []

    def note(_: Scheduler, batches: list[Batch]) -> None:
        started.extend((batch.dispatched_s, str(batch.step), len(batch.members)) for batch in batches)

    drive(scheduler, requests, lambda w: 1.0 if w.step is Step.PREFILL else 2.0, on_event=note)
    return started


def test_pd_drafts_and_verifies_as_one_step_beside_prefill() -> None:
    started = _steps(Scheduler(PD), _requests(2))
    assert started[:4] == [
        (0.0, "prefill", 1),
        (1.0, "draft+verify", 1),
        (1.0, "prefill", 1),
        (3.0, "draft+verify", 2),
    ]


def test_pdv_is_hybrid_alone_and_separate_in_company() -> None:
    assert {step for _, step, _ in _steps(Scheduler(PDV), _requests(1))} == {"prefill", "draft+verify"}
    steps = [step for _, step, _ in _steps(Scheduler(PDV.replace(hybrid_at_or_below=0)), _requests(2))]
    assert set(steps) == {"prefill", "draft", "verify"}


def test_drafts_queued_for_verify_go_their_way_when_hybrid_mode_begins() -> None:
    """Request 1 is cancelled while request 0 is drafted in company: its drafts are still verified on their own."""
    scheduler = Scheduler(PDV)
    first, second = _requests(2)
    scheduler.submit(first, 0.0)
    scheduler.submit(second, 0.0)
    (prefill,) = scheduler.dispatch(0.0)
    scheduler.complete(prefill, [Emission()], 1.0)
    hybrid, prefill = scheduler.dispatch(1.0)
    assert (hybrid.step, hybrid.hybrid, prefill.step) == (Step.DRAFT_VERIFY, True, Step.PREFILL)
    scheduler.complete(hybrid, [Emission(0)], 2.0)
    (draft,) = scheduler.dispatch(2.0)
    assert draft.step is Step.DRAFT
    scheduler.cancel(1, 2.5)
    scheduler.complete(prefill, [Emission()], 2.5)
    scheduler.complete(draft, [None], 3.0)
    assert scheduler.hybrid
    (verify,) = scheduler.dispatch(3.0)
    assert verify.step is Step.VERIFY


def test_baseline_carries_four_requests_and_the_fifth_waits() -> None:
    scheduler = Scheduler(BASELINE)
    for request in _requests(5):
        scheduler.submit(request, 0.0)
    batches = scheduler.dispatch(0.0)
    assert [(batch.worker, batch.members[0].id) for batch in batches] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    scheduler.complete(batches[2], [Emission()], 1.0)
    (draft,) = scheduler.dispatch(1.0)
    assert (draft.worker, draft.members[0].id, draft.step) == (2, 2, Step.DRAFT)


def test_the_fourth_architecture_shares_one_worker_between_prefill_and_draft() -> None:
    started = _steps(Scheduler(FOURTH), _requests(2))
    assert started[:5] == [
        (0.0, "prefill", 1),
        (1.0, "draft", 1),  # decode over prefill
        (3.0, "verify", 1),
        (3.0, "prefill", 1),
        (4.0, "draft", 1),
    ]


@pytest.mark.parametrize(("above", "drafts"), [(2, 5), (1, 4), (None, 6)])
def test_verify_goes_first_only_while_its_queue_exceeds_drafts_by_more_than(above: int | None, drafts: int) -> None:
    """Six requests, prefilled together behind a seventh of one token, are drafted one by one with a single permit:
    after four drafts 4 - 2 wait, after five 5 - 1."""
    limits = {Step.PREFILL: 6, Step.DRAFT: 1}
    architecture = PDV.replace(permits=1, hybrid_at_or_below=0, verify_first_above=above)
    scheduler = Scheduler(architecture.with_batch_limits(limits))
    started = _steps(scheduler, [Request(6, 10, 1, 0.0), *_requests(6)])
    assert [(step, size) for _, step, size in started[1 : drafts + 3]] == [
        ("prefill", 6),
        *[("draft", 1)] * drafts,
        ("verify", drafts),
    ]


def test_waits_are_told_apart_by_cause() -> None:
    """One slot, one permit: request 1 waits 4 s for the slot of request 0, then for nothing else."""
    scheduler = Scheduler(PD.replace(slots=1))
    run = drive(scheduler, _requests(2, max_tokens=3), matched=lambda request, position, k: 2)
    waits = run.steps.set_index(["request", "batch_id"])[["admission_s", "queue_s", "permit_s"]]
    assert Wait(*waits.loc[1].iloc[0]) == (2.0, 0.0, 0.0)
    assert waits.loc[0].sum().sum() == 0


def test_a_permit_wait_that_comes_and_goes_is_added_up() -> None:
    """One permit; prefill and draft share a worker. Request 1 comes at 2.5, while request 0 is verified and only
    the permit is missing (to 3), waits for the worker while 0 drafts (to 4), then for the permit again (to 5)."""
    scheduler = Scheduler(FOURTH.replace(permits=1))
    requests = [Request(0, 10, 3, 0.0), Request(1, 10, 1, 2.5)]
    run = drive(scheduler, requests, matched=lambda request, position, k: 0)
    (wait,) = run.steps[run.steps["request"] == 1][["admission_s", "queue_s", "permit_s"]].to_numpy()
    assert wait.tolist() == [0.0, 1.0, 1.5]


def test_time_without_a_slot_is_not_time_behind_a_busy_lane() -> None:
    """Two slots: request 2 waits for the lane (to 1), then for a slot (to 3), and prefills at once."""
    scheduler = Scheduler(PD.replace(slots=2))
    run = drive(scheduler, _requests(3, max_tokens=2), lambda w: 1.0 if w.step is Step.PREFILL else 2.0)
    (wait,) = run.steps[(run.steps["request"] == 2) & (run.steps["position"] == 0)][
        ["admission_s", "queue_s", "permit_s"]
    ].to_numpy()
    assert wait.tolist() == [2.0, 1.0, 0.0]


def test_the_controller_hears_of_every_verification_and_of_those_that_still_wait() -> None:
    """In baseline the request that was verified is not itself counted as waiting for verify."""
    heard: list[tuple[int, int, int]] = []

    class Listener:
        k = 4

        def observe(self, drafted: int, accepted: int, verify_queue: int) -> None:
            heard.append((drafted, accepted, verify_queue))

    scheduler = Scheduler(BASELINE)
    scheduler.controller = Listener()  # type: ignore[assignment]
    drive(scheduler, _requests(1, max_tokens=4), matched=lambda request, position, k: 1)
    assert heard == [(4, 1, 0), (4, 1, 0)]


def test_those_that_wait_in_their_workers_hands_are_counted_too() -> None:
    """Two permits: two of five requests have been prefilled, and wait in the hands of their workers to be drafted."""
    scheduler = Scheduler(BASELINE.replace(permits=2))
    for request in _requests(5):
        scheduler.submit(request, 0.0)
    first = scheduler.dispatch(0.0)
    assert [batch.step for batch in first] == [Step.PREFILL] * 2
    assert scheduler.queue_length(Stage.PREFILL) == 3
    for batch in first:
        scheduler.complete(batch, [Emission()], 1.0)
    assert (scheduler.queue_length(Stage.PREFILL), scheduler.queue_length(Stage.DRAFT)) == (3, 2)
    assert scheduler.queue_length(Stage.VERIFY) == 0


def test_the_controller_hears_of_requests_behind_the_verified_ones() -> None:
    heard: list[int] = []

    class Listener:
        k = 4

        def observe(self, drafted: int, accepted: int, verify_queue: int) -> None:
            heard.append(verify_queue)

    scheduler = Scheduler(PDV.replace(hybrid_at_or_below=0).with_batch_limits({Step.PREFILL: 3, Step.VERIFY: 1}))
    scheduler.controller = Listener()  # type: ignore[assignment]
    for request in _requests(3):
        scheduler.submit(request, 0.0)
    (prefill,) = scheduler.dispatch(0.0)
    scheduler.complete(prefill, [Emission()] * 3, 1.0)
    (draft,) = scheduler.dispatch(1.0)
    scheduler.complete(draft, [None] * 3, 2.0)
    (verify,) = scheduler.dispatch(2.0)
    scheduler.complete(verify, [Emission(1)], 3.0)
    assert heard == [2]
    (verified,) = verify.members
    assert (verified.verifications, verified.drafted, verified.accepted, verified.rejected) == (1, 4, 1, 3)
    assert verified.draft_length == 0  # no draft waits any more


def test_every_end_is_named() -> None:
    scheduler = Scheduler(BASELINE)
    for request in [*_requests(4, max_tokens=1), Request(4, 10, 9), Request(5, 10, 9)]:
        scheduler.submit(request, 0.0)
    batches = {batch.members[0].id: batch for batch in scheduler.dispatch(0.0)}
    ended = [scheduler.cancel(5, 0.5)]  # still waits
    assert scheduler.cancel(2, 0.5) is None  # ends when its step does
    for request, outcome in ((0, Emission()), (1, RuntimeError("broken")), (2, Emission()), (3, Emission())):
        ended += scheduler.complete(batches[request], [outcome], 1.0)
    (batch,) = scheduler.dispatch(1.0)
    ended += scheduler.complete(batch, [Emission(stop_after=1)], 2.0)
    found = {state.id: (str(state.status), state.finish_reason) for state in ended if state is not None}
    assert found == {
        0: ("finished", "length"), 1: ("failed", "error"), 2: ("cancelled", "cancelled"), 3: ("finished", "length"),
        4: ("finished", "stop"), 5: ("cancelled", "cancelled"),
    }  # fmt: skip


def test_an_end_of_sequence_stops_a_request_and_a_context_limit_is_named() -> None:
    scheduler = Scheduler(BASELINE)
    scheduler.submit(Request(0, 10, 100), 0.0)
    scheduler.submit(Request(1, 10, 100), 0.0, max_tokens=1)
    ended = []
    for batch in scheduler.dispatch(0.0):
        ended += scheduler.complete(batch, [Emission(stop_after=1 if batch.members[0].id == 0 else None)], 1.0)
    assert [(state.id, state.finish_reason, state.emitted) for state in ended] == [(0, "stop", 1), (1, "context", 1)]


def test_an_id_that_is_here_is_refused_and_comes_free_again() -> None:
    scheduler = Scheduler(PD)
    scheduler.submit(Request(0, 10, 9), 0.0)
    with pytest.raises(ValueError, match="request 0 has not ended"):
        scheduler.submit(Request(0, 10, 9), 0.0)
    ended = scheduler.cancel(0, 1.0)
    assert ended is not None
    assert ended.status is Status.CANCELLED
    assert scheduler.cancel(0, 1.0) is None
    assert scheduler.submit(Request(0, 10, 9), 2.0).status is Status.WAITING


def test_a_step_that_must_emit_and_does_not_is_an_error_of_the_caller() -> None:
    scheduler = Scheduler(PD.replace(draft_length=FixedDraftLength(2)))
    scheduler.submit(Request(0, 10, 9), 0.0)
    (prefill,) = scheduler.dispatch(0.0)
    with pytest.raises(ValueError, match="needs an Emission"):
        scheduler.complete(prefill, [None], 1.0)


def test_a_worker_comes_straight_from_other_work_only_at_the_moment_at_which_it_ended() -> None:
    """Two requests of two tokens: the decode lane waits for each prefill of 3 s, and drafts twice in between."""
    scheduler = Scheduler(PD.replace(draft_length=FixedDraftLength(1)))
    record = drive(
        scheduler,
        [Request(0, 10, 3, 0.0), Request(1, 10, 3, 7.0)],
        lambda batch: 3.0 if batch.step is Step.PREFILL else 1.0,
        matched=lambda request, position, k: 0,
    )
    batches = record.spans.drop_duplicates("batch_id")[["dispatched_s", "step", "back_to_back"]]
    assert [tuple(row) for row in batches.itertuples(index=False)] == [
        (0.0, "prefill", False),
        (3.0, "draft+verify", False),
        (4.0, "draft+verify", True),
        (7.0, "prefill", False),
        (10.0, "draft+verify", False),
        (11.0, "draft+verify", True),
    ]


def test_a_request_that_is_submitted_in_a_completion_is_prefilled_straight_away() -> None:
    """One worker, two clients without pauses: after its first batch it is never woken again."""
    (worker,) = BASELINE.lanes
    alone = BASELINE.replace(lanes=(dataclasses.replace(worker, workers=1),))
    record = drive(Scheduler(alone), _requests(6), concurrency=2)
    batches = record.spans.drop_duplicates("batch_id")
    assert batches["back_to_back"].tolist() == [False] + [True] * (len(batches) - 1)
    assert (batches["step"] == "prefill").sum() == 6
