"""Schedulers that bend hybrid mode, priority, endings, bookings, draft lengths, admission or waits."""

from __future__ import annotations

from typing import Any

from engines.policy.architecture import Architecture, Stage, Step
from engines.policy.batch import Batch, Outcome, Wait
from engines.policy.request import Emission, Request, Settlement, Status
from engines.policy.request_state import RequestState
from engines.policy.scheduler import Scheduler, _Queue
from tests.engines.mutants import Mutants

RULES = Mutants()

# --- hybrid, priority, verify first ---------------------------------------------------------------------


@RULES.breaks("hybrid")
class NeverHybrid(Scheduler):
    hybrid = False


@RULES.breaks("hybrid")
class AlwaysHybrid(Scheduler):
    hybrid = True


@RULES.breaks("hybrid")
class HybridBelowTheThresholdOnly(Scheduler):
    @property
    def hybrid(self) -> bool:
        return 0 < len(self.active) < self.architecture.hybrid_at_or_below


@RULES.breaks("hybrid")
class CountsOnlyRunningRequestsAsActive(Scheduler):
    @property
    def hybrid(self) -> bool:
        running = sum(state.status is Status.RUNNING for state in self.active.values())
        return running < self.architecture.hybrid_at_or_below


@RULES.breaks("idle")
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


@RULES.breaks("priority")
class IgnoresPriority(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return ()


@RULES.breaks("priority")
class ReversesPriority(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return priority[::-1]


@RULES.breaks("priority")
class PrefersDecodeEvenWithoutPriority(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return super()._priority_order() if priority else (Stage.DRAFT, Stage.VERIFY, Stage.PREFILL)

    def _priority_order(self) -> tuple[Stage, ...]:
        return Scheduler._priority_order(self) or (Stage.DRAFT, Stage.VERIFY, Stage.PREFILL)


@RULES.breaks("priority")
class NeverVerifiesFirst(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return priority


@RULES.breaks("priority")
class AlwaysVerifiesFirst(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return priority if above is None else self.verify_first(priority)


@RULES.breaks("priority")
class VerifiesFirstOneTooEarly(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        return priority if above is None or self.excess() < above else self.verify_first(priority)


@RULES.breaks("priority")
class VerifiesFirstByItsQueueAlone(_OtherOrder):
    def order(self, priority: tuple[Stage, ...], above: int | None) -> tuple[Stage, ...]:
        late = above is not None and self.queue_length(Stage.VERIFY) > above
        return self.verify_first(priority) if late else priority


# --- how requests end, and what is booked ---------------------------------------------------------------


@RULES.breaks("ends")
class NeverFinishes(Scheduler):
    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        if status is not Status.FINISHED:
            super()._end(state, status, reason, now)


@RULES.breaks("ends")
class FinishesOneTokenEarly(Scheduler):
    def _settle(self, state: RequestState, batch: Batch, emission: Emission, now: float) -> Settlement:
        settlement = super()._settle(state, batch, emission, now)
        state.max_tokens -= state.emitted + 1 == state.max_tokens
        return settlement


@RULES.breaks("ends", "booking")
class IgnoresEndOfSequence(Scheduler):
    def _settle(self, state: RequestState, batch: Batch, emission: Emission, now: float) -> Settlement:
        return super()._settle(state, batch, Emission(emission.matched), now)


@RULES.breaks("ends", "booking")
class IgnoresCancellationWhileRunning(Scheduler):
    def cancel(self, request_id: int, now: float) -> RequestState | None:
        state = self.requests.get(request_id)
        return None if state is None or state.status is Status.RUNNING else super().cancel(request_id, now)


@RULES.breaks("ends")
class TriesAFailedRequestAgain(Scheduler):
    def _advance(self, state: RequestState, batch: Batch, outcome: Outcome, now: float) -> Settlement | None:
        failed = isinstance(outcome, Exception) and not state.cancel_requested
        return None if failed else super()._advance(state, batch, outcome, now)


@RULES.breaks("booking")
class ForgetsDiscardedDrafts(Scheduler):
    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        super()._end(state, status, reason, now)
        state.discarded = 0


@RULES.breaks("booking")
class CountsRejectedDraftsAsAccepted(Scheduler):
    def _settle(self, state: RequestState, batch: Batch, emission: Emission, now: float) -> Settlement:
        settlement = super()._settle(state, batch, emission, now)
        state.accepted, state.rejected = state.accepted + settlement.rejected, state.rejected - settlement.rejected
        return settlement


@RULES.breaks("booking")
class CountsTheTargetsTokenAsADraft(Scheduler):
    def _settle(self, state: RequestState, batch: Batch, emission: Emission, now: float) -> Settlement:
        settlement = super()._settle(state, batch, emission, now)
        state.drafted += batch.step is Step.VERIFY
        return settlement


@RULES.breaks("booking")
class EmitsPastTheLimit(Scheduler):
    def _settle(self, state: RequestState, batch: Batch, emission: Emission, now: float) -> Settlement:
        settlement = super()._settle(state, batch, emission, now)
        state.emitted += max(0, emission.matched + 1 - settlement.emitted)
        return settlement


# --- draft length, admission, waits ---------------------------------------------------------------------


@RULES.breaks("draft length")
class VerifiesWithTheLatestDraftLength(Scheduler):
    def _start(self, queue: _Queue, worker: int, carried: RequestState | None, now: float) -> Batch:
        batch = super()._start(queue, worker, carried, now)
        if batch.step is Step.VERIFY:
            batch.draft_lengths = [self.controller.k] * len(batch.members)
        return batch


@RULES.breaks("draft length")
class DraftsPastTheBounds(Scheduler):
    def _start(self, queue: _Queue, worker: int, carried: RequestState | None, now: float) -> Batch:
        batch = super()._start(queue, worker, carried, now)
        if batch.step in (Step.DRAFT, Step.DRAFT_VERIFY):
            batch.draft_lengths = [self.architecture.draft_length.maximum + 1] * len(batch.members)
        return batch


@RULES.breaks("queue limit")
class TakesEveryRequest(Scheduler):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture.replace(queue_limit=None))


@RULES.breaks("queue limit")
class RefusesOneTooEarly(Scheduler):
    def submit(self, request: Request, now: float, max_tokens: int | None = None) -> RequestState:
        given = self.architecture
        if given.queue_limit is not None and given.queue_limit > 1:
            self.architecture = given.replace(queue_limit=given.queue_limit - 1)
        try:
            return super().submit(request, now, max_tokens)
        finally:
            self.architecture = given


@RULES.breaks("waits")
class CountsThePermitWaitTwice(Scheduler):
    def _wait(self, state: RequestState, queue: _Queue, now: float) -> Wait:
        wait = super()._wait(state, queue, now)
        return wait._replace(queue_s=wait.queue_s + wait.permit_s)


@RULES.breaks("waits")
class WaitsForASlotItHas(Scheduler):
    def _wait(self, state: RequestState, queue: _Queue, now: float) -> Wait:
        wait = super()._wait(state, queue, now)
        return Wait(wait.admission_s + 1.0, wait.queue_s - 1.0, wait.permit_s)


@RULES.breaks("queue length")
class CountsTheRunningAsQueued(Scheduler):
    def queue_length(self, stage: Stage) -> int:
        if stage is Stage.PREFILL:
            return super().queue_length(stage)
        return sum(state.needs is stage for state in self.requests.values())
