"""A third clock for the scheduler: a plain event loop with made-up durations, for tests of policy and record."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from engines.errors import QueueFullError
from engines.policy.architecture import Step
from engines.policy.batch import Batch, Outcome
from engines.policy.request import Emission, Request
from engines.policy.request_state import RequestState
from engines.policy.scheduler import Scheduler
from engines.record.run import Recorder, Run, SegmentTime

Duration = Callable[[Batch], float]
Matched = Callable[[int, int, int], int]  # request id, position, k -> drafts that match


class Observer:
    """Hears everything that the scheduler is told, and what it answers."""

    def submitted(self, request: Request, refused: bool, now: float) -> None: ...

    def cancelled(self, request_id: int, ended: RequestState | None, now: float) -> None: ...

    def completed(
        self, batch: Batch, outcomes: Sequence[Outcome], ended: Sequence[RequestState], now: float
    ) -> None: ...

    def dispatched(self, started: Sequence[Batch], now: float) -> None: ...

    def over(self) -> None: ...


def drive(
    scheduler: Scheduler,
    requests: Iterable[Request],
    duration: Duration = lambda batch: 1.0,
    matched: Matched = lambda request, position, k: k // 2,
    cancel: Iterable[tuple[float, int]] = (),
    on_event: Callable[[Scheduler, list[Batch]], None] = lambda scheduler, started: None,
    *,
    outcome: Callable[[Batch, int], Outcome] | None = None,
    concurrency: int | None = None,
    observer: Observer | None = None,
) -> Run:
    """Serve requests and return the record.

    Requests come at their arrival_s (0 without one) or, with a concurrency, whenever one of that many clients is
    free. cancel lists (time, request id). outcome tells what a batch finds for its i-th member; without it, every
    step finds `matched` drafts right.
    """
    observer = observer or Observer()
    order = itertools.count()
    events: list[tuple[float, int, Request | Batch | int]] = []
    unsent: deque[Request] = deque()

    def at(time: float, what: Request | Batch | int) -> None:
        heapq.heappush(events, (time, next(order), what))

    for position, request in enumerate(requests):
        if concurrency is None or position < concurrency:
            at(request.arrival_s or 0.0, request)
        else:
            unsent.append(request)
    for time, request_id in cancel:
        at(time, request_id)
    recorder = Recorder()
    while events:
        now, _, what = heapq.heappop(events)
        ended: list[RequestState] = []
        refused = False
        if isinstance(what, Request):
            try:
                scheduler.submit(what, now)
            except QueueFullError as error:
                refused = True
                recorder.rejected(what, now, error)
            observer.submitted(what, refused, now)
        elif isinstance(what, Batch):
            found = [outcome(what, i) if outcome else _matching(what, i, matched) for i in range(len(what.members))]
            ended = scheduler.complete(what, found, now)
            observer.completed(what, found, ended, now)
            recorder.completed(what, _segments(what, now), now)
        else:
            gone = scheduler.cancel(what, now)
            observer.cancelled(what, gone, now)
            ended = [gone] if gone else []
        for state in ended:
            recorder.ended(state)
        for _ in range(min(len(ended) + refused, len(unsent))):
            at(now, unsent.popleft())
        started = scheduler.dispatch(now)
        observer.dispatched(started, now)
        on_event(scheduler, started)
        for batch in started:
            at(now + duration(batch), batch)
    observer.over()
    return recorder.run({"kind": "simulated", "architecture": scheduler.architecture.to_dict(), "workload": {}}, {})


def _matching(batch: Batch, member: int, matched: Matched) -> Outcome:
    if batch.step is Step.DRAFT:
        return None
    state, k = batch.members[member], batch.draft_lengths[member]
    return Emission(matched(state.id, state.emitted, k) if k else 0)


def _segments(batch: Batch, end_s: float) -> list[SegmentTime]:
    edges = np.linspace(batch.dispatched_s, end_s, len(batch.shapes) + 1)
    pairs = itertools.pairwise(edges.tolist())
    return [SegmentTime(shape.segment, a, b, b - a) for shape, (a, b) in zip(batch.shapes, pairs, strict=True)]
