"""Schedulers that lose, reorder, overfill, idle, or share what is not theirs to share."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, ClassVar

from engines.policy.architecture import Architecture, Lane, Stage, Step
from engines.policy.batch import Batch, Outcome
from engines.policy.request import Status
from engines.policy.request_state import RequestState
from engines.policy.scheduler import Scheduler, _Queue
from tests.engines.mutants import Mutants

FLOW = Mutants()

# --- requests and their order ---------------------------------------------------------------------------


@FLOW.breaks("idle", "queue length", "batch full", "order")
class LosesARequest(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        if state.id % 4 != 3 or state.worker is not None:
            super()._requeue(state, lane, now)


@FLOW.breaks("duplicated", "queue length")
class QueuesTwice(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        super()._requeue(state, lane, now)
        if state.worker is None:
            self._queues[state.needs].waiting.append(state)


@FLOW.breaks("duplicated", "queue length")
class StartsACancelledRequest(Scheduler):
    def cancel(self, request_id: int, now: float) -> RequestState | None:
        state = self.requests.get(request_id)
        ended = super().cancel(request_id, now)
        if ended is not None and state is not None and state.slot is None:
            self._queues[Stage.PREFILL].waiting.append(state)
        return ended


@FLOW.breaks("order", "priority")
class LastComeFirstServed(Scheduler):
    def _take(self, queue: _Queue) -> list[RequestState]:
        queue.waiting.reverse()
        taken = super()._take(queue)
        queue.waiting.reverse()
        return taken


@FLOW.breaks("order", "priority")
class ReturnsToTheHeadOfTheQueue(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        super()._requeue(state, lane, now)
        if state.worker is None:
            self._queues[state.needs].waiting.rotate(1)


@FLOW.breaks("order", "priority")
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


@FLOW.breaks("batch limit")
class BatchesOneTooMany(_OtherBatchSize):
    by = 1


@FLOW.breaks("batch full")
class BatchesOneTooFew(_OtherBatchSize):
    by = -1


@FLOW.breaks("idle")
class WaitsForAFullBatch(Scheduler):
    def _ready(self, queue: _Queue) -> list[Any]:
        full = queue.lane.steps[queue.step] <= len(queue.waiting)
        return super()._ready(queue) if full or queue.lane.run_to_completion else []


# --- conserving batch ------------------------------------------------------------------------------------


@FLOW.breaks("idle")
class StartsOneWorkAtATime(Scheduler):
    def dispatch(self, now: float) -> list[Batch]:
        choice = self._next_choice()
        return [self._start(*choice, now)] if choice else []


@FLOW.breaks("idle")
class ForgetsAFreeWorker(Scheduler):
    def complete(self, batch: Batch, outcomes: Sequence[Outcome], now: float) -> list[RequestState]:
        ended = super().complete(batch, outcomes, now)
        if batch.id == 3 and self._idle[batch.lane.name]:
            heapq.heappop(self._idle[batch.lane.name])
        return ended


@FLOW.breaks("idle", "batch full", "priority")
class LeaksASlotOnFailure(Scheduler):
    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        super()._end(state, status, reason, now)
        if status is not Status.FINISHED and state.slot is not None:
            self.free_slots.remove(state.slot)


@FLOW.breaks("idle")
class LeaksAPermit(Scheduler):
    def complete(self, batch: Batch, outcomes: Sequence[Outcome], now: float) -> list[RequestState]:
        ended = super().complete(batch, outcomes, now)
        self.permits[batch.lane.device] -= batch.id == 2
        return ended


@FLOW.breaks("idle", "priority")
class AdmitsNobodyWhileSomeoneDrafts(Scheduler):
    def _ready(self, queue: _Queue) -> list[Any]:
        drafting = any(batch.step is not Step.PREFILL for batch in self.running.values())
        return [] if drafting and queue.step is Step.PREFILL else super()._ready(queue)


# --- permits, workers, slots ----------------------------------------------------------------------------


@FLOW.breaks("permits")
class IgnoresPermits(Scheduler):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.permits = dict.fromkeys(self.permits, 1000)


@FLOW.breaks("permits")
class SharesPermitsBetweenDevices(Scheduler):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        total = sum(self.permits.values())
        self.permits = dict.fromkeys(self.permits, total)


@FLOW.breaks("worker")
class RunsTwoWorksOnAWorker(Scheduler):
    def _start(self, queue: _Queue, worker: int, carried: RequestState | None, now: float) -> Batch:
        batch = super()._start(queue, worker, carried, now)
        if carried is None and not batch.lane.run_to_completion:
            heapq.heappush(self._idle[batch.lane.name], worker)
        return batch


@FLOW.breaks("carry")
class PutsItsRequestDown(Scheduler):
    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        self._put_down(state)
        super()._requeue(state, lane, now)


@FLOW.breaks("slots")
class OvercommitsSlots(Scheduler):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.free_slots.append(architecture.slots)


@FLOW.breaks("slots")
class SharesASlot(Scheduler):
    def _admit(self, state: RequestState, now: float) -> None:
        super()._admit(state, now)
        state.slot = 0


@FLOW.breaks("slots", "hybrid")
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
