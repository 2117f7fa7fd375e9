"""The policy: who runs what, with whom, and when.

No clock, no thread and no tensor. Whoever drives it (threads and CUDA streams, or SimPy processes) says what
happened and when, and asks what to start:

    scheduler.submit(request, now)          a request arrives
    for batch in scheduler.dispatch(now):    start everything that can start
        ...                                 run it
    scheduler.complete(batch, outcomes, now) tell what came out

What happens at one moment, a completion and the submissions and starts that follow from it, has one `now`: a worker
that is given its next batch at the moment at which it ended the last one comes straight from it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Sequence

from engines.errors import require_whole
from engines.policy.architecture import Architecture, Lane, Stage, Step
from engines.policy.batch import Batch, Outcome, Wait
from engines.policy.request import MOST_TOKENS, Emission, Request, RequestState, Settlement, Status, settle
from engines.policy.segment_shape import shapes_of


class QueueFullError(RuntimeError):
    """The request was not taken: as many as `queue_limit` already wait for a slot."""


class _Stopwatch:
    """How long a condition has held in all, seconds; it may come and go."""

    def __init__(self) -> None:
        self._total_s = 0.0
        self._since_s: float | None = None

    def set(self, holds: bool, now: float) -> None:
        if self._since_s is not None and not holds:
            self._total_s, self._since_s = self.read(now), None
        elif self._since_s is None and holds:
            self._since_s = now

    def read(self, now: float) -> float:
        return self._total_s if self._since_s is None else self._total_s + now - self._since_s


class _Queue:
    """Requests that are ready for one step of one lane, first come first served."""

    def __init__(self, lane: Lane, step: Step) -> None:
        self.lane = lane
        self.step = step
        self.stage = step.stage
        self.waiting: deque[RequestState] = deque()
        self.slot_missing = _Stopwatch()
        self.permit_missing = _Stopwatch()

    def missing_s(self, now: float) -> tuple[float, float]:
        """How long a slot, and only a permit, have been missing in all."""
        return self.slot_missing.read(now), self.permit_missing.read(now)


class Scheduler:
    """Interprets an Architecture.

    A free worker starts with what is ready, up to the batch limit, without waiting. A request returns to the
    tail of its next queue after each step. Prefill starts while a slot is free; a request holds its slot until
    it ends. Starting a step takes one of the device's permits, and priority picks who gets the next one.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.controller = architecture.draft_length.controller()
        self.permits = {device: architecture.permits_on(device) for device in architecture.devices}
        self.free_slots = list(range(architecture.slots))
        self.active: dict[int, RequestState] = {}  # by slot
        self.running: dict[int, Batch] = {}  # by batch id
        self.requests: dict[int, RequestState] = {}  # waiting or running, by request id
        self._queues = {step.stage: _Queue(lane, step) for lane in architecture.lanes for step in lane.steps}
        self._idle = {lane.name: list(range(lane.workers)) for lane in architecture.lanes}  # heaps
        self._carried: dict[tuple[str, int], RequestState] = {}  # what each carrying worker holds
        self._completed_s: dict[tuple[str, int], float] = {}  # when each worker's last batch was over
        self._order = itertools.count()
        self._batch_ids = itertools.count()

    # --- what the caller reports ------------------------------------------------------------------------

    def submit(self, request: Request, now: float, max_tokens: int | None = None) -> RequestState:
        """A request arrives. `max_tokens` replaces the request's own limit (a context limit, say).

        Raises InputError for values that cannot be served, QueueFullError when `queue_limit` requests already wait,
        ValueError for an id already here. Nothing has changed then.
        """
        request.check()
        allowed = request.max_tokens if max_tokens is None else max_tokens
        require_whole("max_tokens", allowed, 1, MOST_TOKENS)
        if request.id in self.requests:
            raise ValueError(f"request {request.id} is here already")
        limit = self.architecture.queue_limit
        if limit is not None and self.queue_length(Stage.PREFILL) >= limit:
            raise QueueFullError(f"{limit} requests already wait (queue_limit); try later or raise the limit")
        queue = self._queues[Stage.PREFILL]
        state = RequestState(request, allowed, now, now, next(self._order), queue.missing_s(now))
        self.requests[request.id] = state
        queue.waiting.append(state)
        return state

    def complete(self, batch: Batch, outcomes: Sequence[Outcome], now: float) -> list[RequestState]:
        """A batch is over, with one outcome a member. Returns the members that ended with it.

        Members that go on join the tail of their next queue, in batch order.
        """
        del self.running[batch.id]
        self._completed_s[batch.lane.name, batch.worker] = now
        self.permits[batch.lane.device] += 1
        if not batch.lane.run_to_completion:
            heapq.heappush(self._idle[batch.lane.name], batch.worker)
        ended = []
        for state, outcome in zip(batch.members, outcomes, strict=True):
            state.status = Status.WAITING
            batch.settlements.append(self._advance(state, batch, outcome, now))
            if state.ended:
                ended.append(state)
            else:
                self._requeue(state, batch.lane, now)
        return ended

    def cancel(self, request_id: int, now: float) -> RequestState | None:
        """Give a request up. Returns it if it ended at once, None if it ends when its running step does
        (or is not here any more)."""
        state = self.requests.get(request_id)
        if state is None:
            return None
        if state.status is Status.RUNNING:
            state.cancel_requested = True
            return None
        if state.worker is None:
            self._queues[state.needs].waiting.remove(state)
        self._end(state, Status.CANCELLED, "cancelled", now)
        return state

    # --- what the caller asks ---------------------------------------------------------------------------

    def dispatch(self, now: float) -> list[Batch]:
        """Start everything that can start now."""
        started = []
        while (choice := self._next_choice()) is not None:
            started.append(self._start(*choice, now))
        for queue in self._queues.values():
            queue.slot_missing.set(queue.step is Step.PREFILL and not self.free_slots, now)
            queue.permit_missing.set(self._lacks_only_permit(queue), now)
        return started

    def queue_length(self, stage: Stage) -> int:
        """Requests that are ready for a stage and not in it."""
        queue = self._queues.get(stage)
        if queue is None:
            return 0
        if not self._carried:
            return len(queue.waiting)
        carried = sum(state.needs is stage and state.status is Status.WAITING for state in self._carried.values())
        return len(queue.waiting) + carried

    @property
    def hybrid(self) -> bool:
        """Whether draft and verify run as one step for now."""
        return 0 < len(self.active) <= self.architecture.hybrid_at_or_below

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self.requests

    # --- choosing ---------------------------------------------------------------------------------------

    def _next_choice(self) -> tuple[_Queue, int, RequestState | None] | None:
        """The queue to serve, the worker to serve it and, for a carrying worker, the request it holds."""
        choices = []
        for queue in self._queues.values():
            if self.permits[queue.lane.device] > 0:
                choices += self._ready(queue)
        if len(choices) < 2:
            return choices[0] if choices else None
        rank = {stage: place for place, stage in enumerate(self._priority_order())}
        return min(choices, key=lambda c: (rank.get(c[0].stage, 0), (c[2] or c[0].waiting[0]).ready_order))

    def _ready(self, queue: _Queue) -> list[tuple[_Queue, int, RequestState | None]]:
        lane, stage = queue.lane, queue.stage
        choices: list[tuple[_Queue, int, RequestState | None]] = []
        if lane.run_to_completion:
            for (name, worker), state in self._carried.items():
                if name == lane.name and state.needs is stage and state.status is Status.WAITING:
                    choices.append((queue, worker, state))
        if queue.waiting and self._idle[lane.name] and (stage is not Stage.PREFILL or self.free_slots):
            choices.append((queue, self._idle[lane.name][0], None))
        return choices

    def _lacks_only_permit(self, queue: _Queue) -> bool:
        return self.permits[queue.lane.device] == 0 and bool(self._ready(queue))

    def _priority_order(self) -> tuple[Stage, ...]:
        order, above = self.architecture.priority, self.architecture.verify_first_above
        if above is None:
            return order
        if self.queue_length(Stage.VERIFY) - self.queue_length(Stage.DRAFT) > above:
            return (Stage.VERIFY, *(stage for stage in order if stage is not Stage.VERIFY))
        return order

    # --- starting ---------------------------------------------------------------------------------------

    def _start(self, queue: _Queue, worker: int, carried: RequestState | None, now: float) -> Batch:
        lane, step = queue.lane, queue.step
        hybrid = step is Step.DRAFT and self.hybrid
        if hybrid:
            step = Step.DRAFT_VERIFY
        members = [carried] if carried else self._take(queue)
        back_to_back = self._completed_s.get((lane.name, worker)) == now
        batch = Batch(next(self._batch_ids), lane, worker, step, members, now, hybrid, back_to_back)
        for state in members:
            batch.waits.append(self._wait(state, queue, now))
            state.status = Status.RUNNING
            if step is Step.PREFILL:
                self._admit(state, now)
            elif step is not Step.VERIFY:
                state.draft_length = self.controller.k
            batch.draft_lengths.append(state.draft_length)
            if lane.run_to_completion:
                state.worker = worker
                self._carried[lane.name, worker] = state
        batch.shapes = shapes_of(step, members, max(batch.draft_lengths))
        self.permits[lane.device] -= 1
        if carried is None:
            heapq.heappop(self._idle[lane.name])
        self.running[batch.id] = batch
        return batch

    def _take(self, queue: _Queue) -> list[RequestState]:
        size = min(len(queue.waiting), queue.lane.steps[queue.step])
        if queue.step is Step.PREFILL:
            size = min(size, len(self.free_slots))
        return [queue.waiting.popleft() for _ in range(size)]

    def _admit(self, state: RequestState, now: float) -> None:
        state.slot = heapq.heappop(self.free_slots)
        state.prefill_start_s = now
        self.active[state.slot] = state

    def _wait(self, state: RequestState, queue: _Queue, now: float) -> Wait:
        slot_before_s, permit_before_s = state.ready_missing_s
        slot_s, permit_s = queue.missing_s(now)
        slot_s, permit_s = slot_s - slot_before_s, permit_s - permit_before_s
        return Wait(slot_s, max(0.0, now - state.ready_s - slot_s - permit_s), permit_s)

    # --- finishing --------------------------------------------------------------------------------------

    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        queue = self._queues[state.needs]
        state.ready_s, state.ready_order, state.ready_missing_s = now, next(self._order), queue.missing_s(now)
        if queue.lane is not lane:
            self._put_down(state)
        if state.worker is None:
            queue.waiting.append(state)

    def _put_down(self, state: RequestState) -> None:
        """The worker that carries this request, if one does, is free for another."""
        if state.worker is None:
            return
        key = next(key for key, carried in self._carried.items() if carried is state)
        del self._carried[key]
        heapq.heappush(self._idle[key[0]], key[1])
        state.worker = None

    def _advance(self, state: RequestState, batch: Batch, outcome: Outcome, now: float) -> Settlement | None:
        """Book one member's outcome and decide what it needs next."""
        if batch.step in (Step.DRAFT, Step.DRAFT_VERIFY):
            state.drafted += state.draft_length
        if state.cancel_requested:
            self._end(state, Status.CANCELLED, "cancelled", now)
            return None
        if isinstance(outcome, Exception):
            state.error = f"{type(outcome).__name__}: {outcome}"
            self._end(state, Status.FAILED, "error", now)
            return None
        if batch.step is Step.DRAFT:
            state.needs = Stage.VERIFY
            return None
        if outcome is None:
            raise ValueError(f"batch {batch.id} ({batch.step}): request {state.id} needs an Emission")
        state.needs = Stage.DRAFT
        settlement = self._settle(state, batch, outcome, now)
        if settlement.emitted == outcome.stop_after:
            self._end(state, Status.FINISHED, "stop", now)
        elif state.emitted >= state.max_tokens:
            short = state.max_tokens < state.request.max_tokens
            self._end(state, Status.FINISHED, "context" if short else "length", now)
        return settlement

    def _settle(self, state: RequestState, batch: Batch, emission: Emission, now: float) -> Settlement:
        settlement = settle(emission, state.draft_length, state.max_tokens - state.emitted)
        state.emitted += settlement.emitted
        if batch.step is Step.PREFILL:
            state.prefill_end_s = now
            return settlement
        state.accepted += settlement.accepted
        state.rejected += settlement.rejected
        state.discarded += settlement.discarded
        state.verifications += 1
        self.controller.observe(state.draft_length, settlement.accepted, self.queue_length(Stage.VERIFY))
        state.draft_length = 0
        return settlement

    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        """Free everything a request holds. Drafts that were never verified count as discarded."""
        state.status, state.finish_reason, state.finish_s = status, reason, now
        state.discarded = state.drafted - state.accepted - state.rejected
        del self.requests[state.id]
        self._put_down(state)
        if state.slot is not None:
            del self.active[state.slot]
            heapq.heappush(self.free_slots, state.slot)
