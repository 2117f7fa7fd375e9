"""The scheduling policy: which worker runs which requests, and when.

The scheduler has no clock, threads or tensors. Its driver (threads and CUDA streams, or SimPy processes) reports
what happened and when, and asks what to start:

    scheduler.submit(request, now)          a request arrives
    for batch in scheduler.dispatch(now):    start everything that can start
        ...                                 run the batch
    scheduler.complete(batch, outcomes, now) report the outcomes

Pass the same `now` for a completion and for the submissions and dispatches that follow from it: a batch counts as
back-to-back if its worker completed its last batch at exactly that time.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from engines.errors import InputError, QueueFullError, require_whole
from engines.policy.architecture import Architecture, Lane, Stage, Step
from engines.policy.batch import Batch, Outcome, Wait
from engines.policy.draft_length import AdaptiveController, FixedController, LoadAdaptiveDraftLength
from engines.policy.load_adaptive import Load, LoadAdaptiveController, StepTimes
from engines.policy.request import MOST_TOKENS, Emission, Request, Settlement, Status
from engines.policy.request_state import RequestState, settle
from engines.policy.segment_shape import catch_up_of, shapes_of

# Looking a member up on its class, as in Step.DRAFT, takes seven times as long as a name, and decisions do it often.
_PREFILL: Final = Step.PREFILL
_DRAFT: Final = Step.DRAFT
_VERIFY: Final = Step.VERIFY
_DRAFT_VERIFY: Final = Step.DRAFT_VERIFY
_TO_PREFILL: Final = Stage.PREFILL
_TO_DRAFT: Final = Stage.DRAFT
_TO_VERIFY: Final = Stage.VERIFY
_WAITING: Final = Status.WAITING
_RUNNING: Final = Status.RUNNING
_NO_WAIT: Final = Wait(0.0, 0.0, 0.0)


def _controller(
    architecture: Architecture, times: StepTimes | None
) -> FixedController | AdaptiveController | LoadAdaptiveController:
    rule = architecture.draft_length
    if not isinstance(rule, LoadAdaptiveDraftLength):
        return rule.controller()
    if times is None:
        remedy = "it weighs measured stage costs; give a profile"
        raise InputError("draft_length", rule.label, remedy)
    limits = {step: limit for lane in architecture.lanes for step, limit in lane.steps.items()}
    return LoadAdaptiveController(rule, times, limits.get(_VERIFY, limits.get(_DRAFT_VERIFY, 1)))


def _overlaps(architecture: Architecture) -> bool:
    """Whether drafts and verifies of different requests can run at the same time."""
    lanes = {step: lane for lane in architecture.lanes for step in lane.steps}
    if _DRAFT not in lanes or lanes[_DRAFT] is lanes[_VERIFY]:
        return False
    return lanes[_DRAFT].stream != lanes[_VERIFY].stream or lanes[_DRAFT].device != lanes[_VERIFY].device


class _Stopwatch:
    """Total time in seconds for which a condition has held. It may come and go."""

    __slots__ = ("_since_s", "_total_s", "holds")

    def __init__(self) -> None:
        self.holds = False
        self._total_s = self._since_s = 0.0

    def set(self, holds: bool, now: float) -> None:
        if holds:
            self._since_s = now
        else:
            self._total_s = self.read(now)
        self.holds = holds

    def read(self, now: float) -> float:
        return self._total_s + now - self._since_s if self.holds else self._total_s


class _Queue:
    """Requests that are ready for one step of one lane, first come, first served."""

    __slots__ = (
        "_missing_s", "_permit_missing", "_slot_missing", "device", "lane", "limit", "stage", "step", "waiting",
    )  # fmt: skip

    def __init__(self, lane: Lane, step: Step) -> None:
        self.lane = lane
        self.step = step
        self.stage = step.stage
        self.limit = lane.steps[step]
        self.device = lane.device
        self.waiting: deque[RequestState] = deque()
        self._slot_missing = _Stopwatch()
        self._permit_missing = _Stopwatch()
        self._missing_s: tuple[float, float] | None = None  # while neither is missing, so it does not change

    def slot_missing(self, holds: bool, now: float) -> None:
        """Take note of whether a slot is missing now."""
        if self._slot_missing.holds is not holds:
            self._slot_missing.set(holds, now)
            self._missing_s = None

    def permit_missing(self, holds: bool, now: float) -> None:
        """Take note of whether a permit, and nothing else, is missing now."""
        if self._permit_missing.holds is not holds:
            self._permit_missing.set(holds, now)
            self._missing_s = None

    def missing_s(self, now: float) -> tuple[float, float]:
        """Return for how long, in all, a slot has been missing, and for how long only a permit has."""
        if self._missing_s is not None:
            return self._missing_s
        missing_s = self._slot_missing.read(now), self._permit_missing.read(now)
        if not (self._slot_missing.holds or self._permit_missing.holds):
            self._missing_s = missing_s
        return missing_s


class Scheduler:
    """Schedule requests as an Architecture says.

    A free worker starts a batch of whatever is ready, up to the batch limit, without waiting for more. After each
    step, a request joins the tail of its next queue. Prefill needs a free slot, which the request then holds until
    it ends. Starting a step takes one of the device's permits. Priority decides which step gets the next one. While
    the draft length is 0, requests that would be drafted for join the verify queue instead, where these are two.
    """

    def __init__(
        self, architecture: Architecture, batch_ids: Iterator[int] | None = None, times: StepTimes | None = None
    ) -> None:
        """batch_ids: by default 0, 1, ...; shared by schedulers that are recorded together. times: of the steps,
        which a load-adaptive draft length weighs. Raises InputError if it has none."""
        self.architecture = architecture
        self.controller = _controller(architecture, times)
        self._weighs = self.controller if isinstance(self.controller, LoadAdaptiveController) else None
        self._overlaps = _overlaps(architecture)
        self.permits = {device: architecture.permits_on(device) for device in architecture.devices}
        self._few_permits = architecture.permits is not None  # without a number, every worker has one
        self._may_not_draft = architecture.draft_length.minimum == 0
        self._drafts, self._catches_up = architecture.drafts, architecture.catches_up
        self.free_slots = list(range(architecture.slots))
        self.active: dict[int, RequestState] = {}  # by slot
        self.running: dict[int, Batch] = {}  # by batch id
        self.requests: dict[int, RequestState] = {}  # waiting or running, by request id
        self._queues = {step.stage: _Queue(lane, step) for lane in architecture.lanes for step in lane.steps}
        self._idle = {lane.name: list(range(lane.workers)) for lane in architecture.lanes}  # heaps
        self._carried: dict[tuple[str, int], RequestState] = {}  # request of each run-to-completion worker
        self._completed_s: dict[tuple[str, int], float] = {}  # when each worker's last batch was completed
        self._order = itertools.count()
        self._batch_ids = itertools.count() if batch_ids is None else batch_ids

    # --- what the caller reports ------------------------------------------------------------------------

    def submit(self, request: Request, now: float, max_tokens: int | None = None) -> RequestState:
        """Accept a request. `max_tokens` replaces the request's own limit, for instance to fit the context.

        Raises InputError for values that cannot be served, QueueFullError if `queue_limit` requests already wait,
        and ValueError for the id of a request that has not ended. The scheduler is then unchanged.
        """
        request.check()
        allowed = request.max_tokens if max_tokens is None else max_tokens
        require_whole("max_tokens", allowed, 1, MOST_TOKENS)
        if request.id in self.requests:
            raise ValueError(f"request {request.id} has not ended; use another id")
        limit = self.architecture.queue_limit
        if limit is not None and self.queue_length(_TO_PREFILL) >= limit:
            raise QueueFullError(f"{limit} requests already wait (queue_limit); try later or raise the limit")
        queue = self._queues[_TO_PREFILL]
        state = RequestState(request, allowed, now, now, next(self._order), queue.missing_s(now))
        self.requests[request.id] = state
        queue.waiting.append(state)
        return state

    def complete(self, batch: Batch, outcomes: Sequence[Outcome], now: float) -> list[RequestState]:
        """Complete a batch, given one outcome per member, and return the members that ended with it.

        The other members join the tail of their next queue, in batch order.
        """
        del self.running[batch.id]
        lane = batch.lane
        self._completed_s[lane.name, batch.worker] = now
        self.permits[lane.device] += 1
        if not lane.run_to_completion:
            heapq.heappush(self._idle[lane.name], batch.worker)
        if len(outcomes) != len(batch.members):
            raise ValueError(f"batch {batch.id} has {len(batch.members)} members, but {len(outcomes)} outcomes")
        ended = []
        settlements, advance, requeue = batch.settlements, self._advance, self._requeue
        for place, state in enumerate(batch.members):
            state.status = _WAITING
            settlements.append(advance(state, batch, outcomes[place], now))
            if state.finish_s is None:
                requeue(state, lane, now)
            else:
                ended.append(state)
        return ended

    def cancel(self, request_id: int, now: float) -> RequestState | None:
        """Cancel a request. Returns it if it ended at once.

        Returns None if the request is running, and so ends with its step, or if it has already ended.
        """
        state = self.requests.get(request_id)
        if state is None:
            return None
        if state.status is _RUNNING:
            state.cancel_requested = True
            return None
        if state.worker is None:
            self._queues[state.needs].waiting.remove(state)
        self._end(state, Status.CANCELLED, "cancelled", now)
        return state

    # --- what the caller asks ---------------------------------------------------------------------------

    def dispatch(self, now: float) -> list[Batch]:
        """Start all batches that can start now, and return them."""
        started = []
        while True:
            if self._may_not_draft and _TO_VERIFY in self._queues:
                self._leave_drafts_out(now)
            choice = self._next_choice()
            if choice is None:
                break
            started.append(self._start(*choice, now))
        self._queues[_TO_PREFILL].slot_missing(not self.free_slots, now)
        if self._few_permits:
            for queue in self._queues.values():
                queue.permit_missing(self._lacks_only_permit(queue), now)
        return started

    def queue_length(self, stage: Stage) -> int:
        """Return how many requests wait for a stage."""
        queue = self._queues.get(stage)
        if queue is None:
            return 0
        if not self._carried:
            return len(queue.waiting)
        carried = sum(state.needs is stage and state.status is _WAITING for state in self._carried.values())
        return len(queue.waiting) + carried

    @property
    def hybrid(self) -> bool:
        """Whether draft and verify currently run as one step."""
        return 0 < len(self.active) <= self.architecture.hybrid_at_or_below

    @property
    def idle(self) -> bool:
        """Whether no request is waiting or running."""
        return not self.requests

    # --- choosing ---------------------------------------------------------------------------------------

    def _next_choice(self) -> tuple[_Queue, int, RequestState | None] | None:
        """Return the queue to serve, the worker and, if the worker runs to completion, the request that it holds."""
        choices = []
        for queue in self._queues.values():
            if (queue.waiting or self._carried) and self.permits[queue.device] > 0:
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
                if name == lane.name and state.needs is stage and state.status is _WAITING:
                    choices.append((queue, worker, state))
        if queue.waiting and self._idle[lane.name] and (stage is not _TO_PREFILL or self.free_slots):
            choices.append((queue, self._idle[lane.name][0], None))
        return choices

    def _lacks_only_permit(self, queue: _Queue) -> bool:
        return self.permits[queue.device] == 0 and bool(self._ready(queue))

    def _priority_order(self) -> tuple[Stage, ...]:
        order, above = self.architecture.priority, self.architecture.verify_first_above
        if above is None:
            return order
        if self.queue_length(_TO_VERIFY) - self.queue_length(_TO_DRAFT) > above:
            return (_TO_VERIFY, *(stage for stage in order if stage is not _TO_VERIFY))
        return order

    def _leave_drafts_out(self, now: float) -> None:
        """Send requests that wait for a draft on to verify, in order, if their draft length is 0."""
        queue = self._queues[_TO_DRAFT]
        carried = [s for s in self._carried.values() if s.needs is _TO_DRAFT and s.status is _WAITING]
        if self._weighs is None:
            for state in (*queue.waiting, *carried):
                self._skip_draft(state, now)
            queue.waiting.clear()
            return
        if self.permits[queue.device] <= 0:  # nothing is decided before it can start
            return
        for state in carried:
            if self._choose([state], 0) == 0:
                self._skip_draft(state, now)
        while queue.waiting and self._idle[queue.lane.name]:
            members = list(itertools.islice(queue.waiting, queue.limit))
            if self._choose(members, 0):
                break
            for _ in members:
                self._skip_draft(queue.waiting.popleft(), now)

    def _skip_draft(self, state: RequestState, now: float) -> None:
        """Let a request that waits for a draft wait for verify instead. The caller takes it out of its queue."""
        verify = self._queues[_TO_VERIFY]
        state.needs = _TO_VERIFY
        state.ready_missing_s = verify.missing_s(now)
        if verify.lane is not self._queues[_TO_DRAFT].lane:
            self._put_down(state)
        if state.worker is None:
            verify.waiting.append(state)

    def _choose(self, members: Sequence[RequestState], least: int) -> int:
        """Return the draft length that the controller chooses for a batch of these requests, `least` or more.

        Where draft is a step of its own, a choice above 0 counts once the batch starts.
        """
        assert self._weighs is not None
        size = len(members)
        prefilling = sum(len(batch.members) for batch in self.running.values() if batch.step is _PREFILL)
        context = sum(state.request.prompt_tokens + state.emitted for state in members) / size
        behind = sum(state.behind for state in members)
        draft, beside, joins = self._queues[_TO_DRAFT], len(self.active) - prefilling - size, False
        whole = draft.step is _DRAFT_VERIFY or self.hybrid
        if self._overlaps:
            verify = self._queues[_TO_VERIFY]
            joins = 0 < beside == len(verify.waiting) and size + beside <= min(draft.limit, verify.limit)
        k = self._weighs.choose(Load(size, beside, context, behind, whole, self._overlaps, joins), least)
        if least or not k or draft.step is _DRAFT_VERIFY:
            self._weighs.chose(k)
        return k

    # --- starting ---------------------------------------------------------------------------------------

    def _start(self, queue: _Queue, worker: int, carried: RequestState | None, now: float) -> Batch:
        lane, step = queue.lane, queue.step
        hybrid = step is _DRAFT and self.hybrid
        if hybrid:
            step = _DRAFT_VERIFY
        members = [carried] if carried else self._take(queue)
        waits = self._waits(members, queue, now)
        drafts, k = step is _DRAFT_VERIFY or step is _DRAFT, self.controller.k
        if drafts and self._weighs is not None:
            k = self._choose(members, least=int(queue.step is _DRAFT))
        for state in members:
            state.status = _RUNNING
            if drafts:
                state.draft_length = k
        if step is _PREFILL:
            for state in members:
                self._admit(state, now)
        if lane.run_to_completion:
            for state in members:
                state.worker = worker
                self._carried[lane.name, worker] = state
        lengths = [state.draft_length for state in members]
        shapes = shapes_of(step, members, max(lengths), self._drafts)
        if drafts and k and self._catches_up:
            shapes = (*catch_up_of(members), *shapes)
        back_to_back = self._completed_s.get((lane.name, worker)) == now
        number = next(self._batch_ids)
        batch = Batch(number, lane, worker, step, members, now, hybrid, back_to_back, lengths, waits, [], shapes)
        self.permits[queue.device] -= 1
        if carried is None:
            heapq.heappop(self._idle[lane.name])
        self.running[number] = batch
        return batch

    def _take(self, queue: _Queue) -> list[RequestState]:
        waiting, size = queue.waiting, queue.limit
        if queue.step is _PREFILL:
            size = min(size, len(self.free_slots))
        if len(waiting) > size:
            return [waiting.popleft() for _ in range(size)]
        members = list(waiting)
        waiting.clear()
        return members

    def _waits(self, members: Sequence[RequestState], queue: _Queue, now: float) -> list[Wait]:
        """Return how long each member has waited. Those that became ready together have waited equally long."""
        waits, ready_s, ready_missing_s = [], -1.0, None
        for state in members:
            if state.ready_s != ready_s or state.ready_missing_s is not ready_missing_s:
                wait, ready_s, ready_missing_s = self._wait(state, queue, now), state.ready_s, state.ready_missing_s
            waits.append(wait)
        return waits

    def _admit(self, state: RequestState, now: float) -> None:
        state.slot = heapq.heappop(self.free_slots)
        state.prefill_start_s = now
        self.active[state.slot] = state

    def _wait(self, state: RequestState, queue: _Queue, now: float) -> Wait:
        slot_before_s, permit_before_s = state.ready_missing_s
        slot_s, permit_s = queue.missing_s(now)
        slot_s, permit_s = slot_s - slot_before_s, permit_s - permit_before_s
        if now == state.ready_s and slot_s == permit_s == 0:
            return _NO_WAIT
        return Wait(slot_s, max(0.0, now - state.ready_s - slot_s - permit_s), permit_s)

    # --- finishing --------------------------------------------------------------------------------------

    def _requeue(self, state: RequestState, lane: Lane, now: float) -> None:
        queue = self._queues[state.needs]
        state.ready_s = now
        state.ready_order = next(self._order)
        state.ready_missing_s = queue.missing_s(now)
        if state.worker is not None and queue.lane is not lane:
            self._put_down(state)
        if state.worker is None:
            queue.waiting.append(state)

    def _put_down(self, state: RequestState) -> None:
        """Free the worker that runs this request to completion, if there is one."""
        if state.worker is None:
            return
        key = next(key for key, carried in self._carried.items() if carried is state)
        del self._carried[key]
        heapq.heappush(self._idle[key[0]], key[1])
        state.worker = None

    def _advance(self, state: RequestState, batch: Batch, outcome: Outcome, now: float) -> Settlement | None:
        """Settle one member's outcome and decide what it needs next."""
        step = batch.step
        if step is not _PREFILL and step is not _VERIFY:
            state.drafted += state.draft_length
        if state.cancel_requested:
            self._end(state, Status.CANCELLED, "cancelled", now)
            return None
        if isinstance(outcome, Exception):
            state.error = f"{type(outcome).__name__}: {outcome}"
            self._end(state, Status.FAILED, "error", now)
            return None
        if step is _DRAFT:
            state.needs = _TO_VERIFY
            return None
        if outcome is None:
            raise ValueError(f"batch {batch.id} ({step}): request {state.id} needs an Emission")
        state.needs = _TO_DRAFT
        settlement = self._settle(state, batch, outcome, now)
        if settlement.emitted == outcome.stop_after:
            self._end(state, Status.FINISHED, "stop", now)
        elif state.emitted >= state.max_tokens:
            short = state.max_tokens < state.request.max_tokens
            self._end(state, Status.FINISHED, "context" if short else "length", now)
        return settlement

    def _settle(self, state: RequestState, batch: Batch, emission: Emission, now: float) -> Settlement:
        k = state.draft_length
        settlement = settle(emission, k, state.max_tokens - state.emitted)
        state.emitted += settlement.emitted
        if batch.step is _PREFILL:
            state.prefill_end_s = now
            return settlement
        state.accepted += settlement.accepted
        state.rejected += settlement.rejected
        state.verifications += 1
        state.draft_length = 0
        state.behind = 0 if k else state.behind + settlement.emitted
        if self._weighs is not None:
            self._weighs.observe(k - settlement.discarded, settlement.accepted, self.queue_length(_TO_VERIFY))
        elif type(self.controller) is not FixedController:  # which ignores it
            self.controller.observe(k, settlement.accepted, self.queue_length(_TO_VERIFY))
        return settlement

    def _end(self, state: RequestState, status: Status, reason: str, now: float) -> None:
        """End a request and free all that it holds. Drafts that were never verified count as discarded."""
        state.status, state.finish_reason, state.finish_s = status, reason, now
        state.discarded = state.drafted - state.accepted - state.rejected
        del self.requests[state.id]
        self._put_down(state)
        if state.slot is not None:
            del self.active[state.slot]
            heapq.heappush(self.free_slots, state.slot)
