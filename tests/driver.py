"""A third clock for the scheduler: a plain event loop with made-up durations, for tests of policy and record."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable

import numpy as np

from engines.architecture import Architecture, Step
from engines.request import Emission, Request
from engines.run import Recorder, Run, SegmentTime
from engines.scheduler import Outcome, Scheduler, Work

Duration = Callable[[Work], float]
Matched = Callable[[int, int, int], int]  # request id, position, k -> drafts that match


def drive(
    scheduler: Scheduler,
    requests: Iterable[Request],
    duration: Duration = lambda work: 1.0,
    matched: Matched = lambda request, position, k: k // 2,
    cancel: Iterable[tuple[float, int]] = (),
    on_event: Callable[[Scheduler, list[Work]], None] = lambda scheduler, started: None,
) -> Run:
    """Serve requests (each with an arrival_s) and return the record. `cancel` lists (time, request id)."""
    order = itertools.count()
    events: list[tuple[float, int, str, object]] = []
    for request in requests:
        heapq.heappush(events, (request.arrival_s or 0.0, next(order), "arrive", request))
    for at, request_id in cancel:
        heapq.heappush(events, (at, next(order), "cancel", request_id))
    recorder = Recorder()
    while events:
        now, _, kind, what = heapq.heappop(events)
        ended = []
        if isinstance(what, Request):
            scheduler.submit(what, now)
        elif isinstance(what, Work):
            ended = scheduler.complete(what, [_outcome(what, i, matched) for i in range(len(what.members))], now)
            recorder.worked(what, _segments(what, now), now)
        elif isinstance(what, int):
            gone = scheduler.cancel(what, now)
            ended = [gone] if gone else []
        for state in ended:
            recorder.ended(state)
        started = scheduler.dispatch(now)
        on_event(scheduler, started)
        for work in started:
            heapq.heappush(events, (now + duration(work), next(order), "done", work))
    architecture: Architecture = scheduler.architecture
    return recorder.run({"kind": "driven", "architecture": architecture.to_dict()}, {})


def _outcome(work: Work, member: int, matched: Matched) -> Outcome:
    if work.step is Step.DRAFT:
        return None
    state, k = work.members[member], work.draft_lengths[member]
    return Emission(matched(state.id, state.emitted, k) if k else 0)


def _segments(work: Work, end_s: float) -> list[SegmentTime]:
    edges = np.linspace(work.dispatched_s, end_s, len(work.step.segments) + 1)
    pairs = itertools.pairwise(edges.tolist())
    return [SegmentTime(s, a, b, b - a) for s, (a, b) in zip(work.step.segments, pairs, strict=True)]
