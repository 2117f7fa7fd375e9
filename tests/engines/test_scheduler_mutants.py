"""Schedulers broken on purpose. Each breaks one promise, and the invariants must notice which."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from engines.architecture import Architecture, Lane, Stage, Step
from engines.request import Emission, Request, RequestState, Settlement, Status
from engines.scheduler import Outcome, Scheduler, Wait, Work, _Queue
from tests.engines.invariants import InvariantError
from tests.engines.scenarios import Scenario, scenarios

BROKEN: dict[type[Scheduler], tuple[str, ...]] = {}


def breaks(*rules: str) -> Any:
    """Registers a broken scheduler with the rules that it breaks; whichever is seen first catches it."""

    def register(broken: type[Scheduler]) -> type[Scheduler]:
        BROKEN[broken] = rules
        return broken

    return register


# --- requests and their order ---------------------------------------------------------------------------


@breaks("idle", "queue length")
class LosesARequest(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        if state.id % 4 != 3 or state.worker is not None:
            super()._requeue(state, lane, now)


@breaks("duplicated", "queue length")
class QueuesTwice(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        super()._requeue(state, lane, now)
        if state.worker is None:
            self._queues[state.needs].waiting.append(state)


@breaks("duplicated", "queue length")
class StartsACancelledRequest(Scheduler):
    def cancel(self, request_id: int, now: float) -> RequestState | None:
        state = self.requests.get(request_id)
        ended = super().cancel(request_id, now)
        if ended is not None and state is not None and state.slot is None:
            self._queues[Stage.PREFILL].waiting.append(state)
        return ended


@breaks("order", "priority")
class LastComeFirstServed(Scheduler):
    def _take(self, queue: _Queue) -> list[RequestState]:
        queue.waiting.reverse()
        taken = super()._take(queue)
        queue.waiting.reverse()
        return taken


@breaks("order", "priority")
class ReturnsToTheHeadOfTheQueue(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        super()._requeue(state, lane, now)
        if state.worker is None:
            self._queues[state.needs].waiting.rotate(1)


@breaks("order", "priority")
class ShortestFirst(Scheduler):
    def _take(self, queue: _Queue) -> list[RequestState]:
        rest = sorted(queue.waiting, key=lambda state: state.max_tokens)
        queue.waiting.clear()
        queue.waiting.extend(rest)
        return super()._take(queue)


# --- batches --------------------------------------------------------------------------------------------


class _OtherBatchSize(Scheduler):
    by: ClassVar[int]

    def _take(self, queue: _Queue) -> list[RequestState]:
        size = min(len(queue.waiting), max(1, queue.lane.steps[queue.step] + self.by))
        if queue.step is Step.PREFILL:
            size = min(size, len(self.free_slots))
        return [queue.waiting.popleft() for _ in range(size)]


@breaks("batch limit")
class BatchesOneTooMany(_OtherBatchSize):
    by = 1


@breaks("batch full")
class BatchesOneTooFew(_OtherBatchSize):
    by = -1


@breaks("idle")
class WaitsForAFullBatch(Scheduler):
    def _ready(self, queue: _Queue) -> list[Any]:
        full = queue.lane.steps[queue.step] <= len(queue.waiting)
        return super()._ready(queue) if full or queue.lane.carries_request else []


# --- conserving work ------------------------------------------------------------------------------------


@breaks("idle")
class StartsOneWorkAtATime(Scheduler):
    def dispatch(self, now: float) -> list[Work]:
        choice = self._next_choice()
        return [self._start(*choice, now)] if choice else []


@breaks("idle")
class ForgetsAFreeWorker(Scheduler):
    def complete(self, work: Work, outcomes: Sequence[Outcome], now: float) -> list[RequestState]:
        ended = super().complete(work, outcomes, now)
        if work.id == 3 and self._idle[work.lane.name]:
            heapq.heappop(self._idle[work.lane.name])
        return ended


@breaks("idle", "batch full", "priority")
class LeaksASlotOnFailure(Scheduler):
    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        super()._end(state, status, reason, now)
        if status is not Status.FINISHED and state.slot is not None:
            self.free_slots.remove(state.slot)


@breaks("idle")
class LeaksAPermit(Scheduler):
    def complete(self, work: Work, outcomes: Sequence[Outcome], now: float) -> list[RequestState]:
        ended = super().complete(work, outcomes, now)
        self.permits[work.lane.device] -= work.id == 2
        return ended


@breaks("idle")
class AdmitsNobodyWhileSomeoneDrafts(Scheduler):
    def _ready(self, queue: _Queue) -> list[Any]:
        drafting = any(work.step is not Step.PREFILL for work in self.running.values())
        return [] if drafting and queue.step is Step.PREFILL else super()._ready(queue)


# --- permits, workers, slots ----------------------------------------------------------------------------


@breaks("permits")
class IgnoresPermits(Scheduler):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.permits = dict.fromkeys(self.permits, 1000)


@breaks("permits")
class SharesPermitsBetweenDevices(Scheduler):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        total = sum(self.permits.values())
        self.permits = dict.fromkeys(self.permits, total)


@breaks("worker")
class RunsTwoWorksOnAWorker(Scheduler):
    def _start(self, queue: _Queue, worker: int, carried: RequestState | None, now: float) -> Work:
        work = super()._start(queue, worker, carried, now)
        if carried is None and not work.lane.carries_request:
            heapq.heappush(self._idle[work.lane.name], worker)
        return work


@breaks("carry")
class PutsItsRequestDown(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        self._put_down(state)
        super()._requeue(state, lane, now)


@breaks("slots")
class OvercommitsSlots(Scheduler):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.free_slots.append(architecture.slots)


@breaks("slots")
class SharesASlot(Scheduler):
    def _admit(self, state: RequestState, now: float) -> None:
        super()._admit(state, now)
        state.slot = 0


@breaks("slots", "hybrid")
class FreesTheSlotAfterPrefill(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        if state.needs is Stage.DRAFT and state.verifications == 0 and state.slot in self.active:
            del self.active[state.slot]
            heapq.heappush(self.free_slots, state.slot)
        super()._requeue(state, lane, now)

    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        if state.slot is not None:
            self.active.setdefault(state.slot, state)
        super()._end(state, status, reason, now)


# --- hybrid, priority, verify first ---------------------------------------------------------------------


@breaks("hybrid")
class NeverHybrid(Scheduler):
    hybrid = False


@breaks("hybrid")
class AlwaysHybrid(Scheduler):
    hybrid = True


@breaks("hybrid")
class HybridBelowTheThresholdOnly(Scheduler):
    @property
    def hybrid(self) -> bool:
        return 0 < len(self.active) < self.architecture.hybrid_at_or_below


@breaks("hybrid")
class CountsOnlyRunningRequestsAsActive(Scheduler):
    @property
    def hybrid(self) -> bool:
        running = sum(state.status is Status.RUNNING for state in self.active.values())
        return running < self.architecture.hybrid_at_or_below


@breaks("idle")
class LeavesDraftedRequestsBehindInHybrid(Scheduler):
    def _ready(self, queue: _Queue) -> list[Any]:
        return [] if self.hybrid and queue.step is Step.VERIFY else super()._ready(queue)


class _OtherOrder(Scheduler):
    def _priority_order(self) -> tuple[Stage, ...]:
        return self.order(self.architecture.priority, self.architecture.verify_first_above)

    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        raise NotImplementedError

    def excess(self) -> int:
        return self.queue_length(Stage.VERIFY) - self.queue_length(Stage.DRAFT)

    @staticmethod
    def verify_first(priority: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return Stage.VERIFY, *(stage for stage in priority if stage is not Stage.VERIFY)


@breaks("priority")
class IgnoresPriority(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return ()


@breaks("priority")
class ReversesPriority(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return priority[::-1]


@breaks("priority")
class PrefersDecodeEvenWithoutPriority(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return super()._priority_order() if priority else (Stage.DRAFT, Stage.VERIFY, Stage.PREFILL)

    def _priority_order(self) -> tuple[Stage, ...]:
        return Scheduler._priority_order(self) or (Stage.DRAFT, Stage.VERIFY, Stage.PREFILL)


@breaks("priority")
class NeverVerifiesFirst(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return priority


@breaks("priority")
class AlwaysVerifiesFirst(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return priority if above is None else self.verify_first(priority)


@breaks("priority")
class VerifiesFirstOneTooEarly(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return priority if above is None or self.excess() < above else self.verify_first(priority)


@breaks("priority")
class VerifiesFirstByItsQueueAlone(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        late = above is not None and self.queue_length(Stage.VERIFY) > above
        return self.verify_first(priority) if late else priority


# --- how requests end, and what is booked ---------------------------------------------------------------


@breaks("ends")
class NeverFinishes(Scheduler):
    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        if status is not Status.FINISHED:
            super()._end(state, status, reason, now)


@breaks("ends")
class FinishesOneTokenEarly(Scheduler):
    def _settle(self, state: RequestState, work: Work, emission: Emission, now: float) -> Settlement:
        settlement = super()._settle(state, work, emission, now)
        state.max_tokens -= state.emitted + 1 == state.max_tokens
        return settlement


@breaks("ends")
class IgnoresEndOfSequence(Scheduler):
    def _settle(self, state: RequestState, work: Work, emission: Emission, now: float) -> Settlement:
        return super()._settle(state, work, Emission(emission.matched), now)


@breaks("ends")
class IgnoresCancellationWhileRunning(Scheduler):
    def cancel(self, request_id: int, now: float) -> RequestState | None:
        state = self.requests.get(request_id)
        return None if state is None or state.status is Status.RUNNING else super().cancel(request_id, now)


@breaks("ends")
class TriesAFailedRequestAgain(Scheduler):
    def _advance(self, state: RequestState, work: Work, outcome: Outcome, now: float) -> Settlement | None:
        failed = isinstance(outcome, Exception) and not state.cancel_requested
        return None if failed else super()._advance(state, work, outcome, now)


@breaks("booking")
class ForgetsDiscardedDrafts(Scheduler):
    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        super()._end(state, status, reason, now)
        state.discarded = 0


@breaks("booking")
class CountsRejectedDraftsAsAccepted(Scheduler):
    def _settle(self, state: RequestState, work: Work, emission: Emission, now: float) -> Settlement:
        settlement = super()._settle(state, work, emission, now)
        state.accepted, state.rejected = state.accepted + settlement.rejected, state.rejected - settlement.rejected
        return settlement


@breaks("booking")
class CountsTheTargetsTokenAsADraft(Scheduler):
    def _settle(self, state: RequestState, work: Work, emission: Emission, now: float) -> Settlement:
        settlement = super()._settle(state, work, emission, now)
        state.drafted += work.step is Step.VERIFY
        return settlement


@breaks("booking")
class EmitsPastTheLimit(Scheduler):
    def _settle(self, state: RequestState, work: Work, emission: Emission, now: float) -> Settlement:
        settlement = super()._settle(state, work, emission, now)
        state.emitted += max(0, emission.matched + 1 - settlement.emitted)
        return settlement


# --- draft length, admission, waits ---------------------------------------------------------------------


@breaks("draft length")
class VerifiesWithTheLatestDraftLength(Scheduler):
    def _start(self, queue: _Queue, worker: int, carried: RequestState | None, now: float) -> Work:
        work = super()._start(queue, worker, carried, now)
        if work.step is Step.VERIFY:
            work.draft_lengths = [self.controller.k] * len(work.members)
        return work


@breaks("draft length")
class DraftsPastTheBounds(Scheduler):
    def _start(self, queue: _Queue, worker: int, carried: RequestState | None, now: float) -> Work:
        work = super()._start(queue, worker, carried, now)
        if work.step in (Step.DRAFT, Step.DRAFT_VERIFY):
            work.draft_lengths = [self.architecture.draft_length.maximum + 1] * len(work.members)
        return work


@breaks("queue limit")
class TakesEveryRequest(Scheduler):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture.replace(queue_limit=None))


@breaks("queue limit")
class RefusesOneTooEarly(Scheduler):
    def submit(self, request: Request, now: float, max_tokens: int | None = None) -> RequestState:
        given = self.architecture
        if given.queue_limit is not None and given.queue_limit > 1:
            self.architecture = given.replace(queue_limit=given.queue_limit - 1)
        try:
            return super().submit(request, now, max_tokens)
        finally:
            self.architecture = given


@breaks("waits")
class CountsThePermitWaitTwice(Scheduler):
    def _wait(self, state: RequestState, queue: _Queue, now: float) -> Wait:
        wait = super()._wait(state, queue, now)
        return wait._replace(queue_s=wait.queue_s + wait.permit_s)


@breaks("waits")
class WaitsForASlotItHas(Scheduler):
    def _wait(self, state: RequestState, queue: _Queue, now: float) -> Wait:
        wait = super()._wait(state, queue, now)
        return Wait(wait.admission_s + 1.0, wait.queue_s - 1.0, wait.permit_s)


@breaks("queue length")
class CountsTheRunningAsQueued(Scheduler):
    def queue_length(self, stage: Stage) -> int:
        if stage is Stage.PREFILL:
            return super().queue_length(stage)
        return sum(state.needs is stage for state in self.requests.values())


def _serve_many(scheduler_type: type[Scheduler]) -> None:
    """The property of test_scheduler, on examples that are the same in every run, without shrinking."""

    @settings(
        max_examples=400,
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


@pytest.mark.parametrize(("broken", "rules"), BROKEN.items(), ids=[broken.__name__ for broken in BROKEN])
def test_a_scheduler_broken_on_purpose_is_caught(broken: type[Scheduler], rules: tuple[str, ...]) -> None:
    with pytest.raises(InvariantError) as caught:
        _serve_many(broken)
    assert caught.value.rule in rules
