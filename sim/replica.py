"""One simulated engine: the live scheduler on a simulated clock.

Every worker of every lane is a SimPy process, and devices take the time that the costs and the contention say. What
to run is decided by engines.policy.scheduler.Scheduler alone, and engines.record.run.Recorder writes the record,
both exactly as in the live engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
import simpy
from simpy.events import Timeout

from calibrate.contention import RunningSegment
from engines.errors import InputError, QueueFullError
from engines.policy.architecture import Architecture, Lane, Segment, Step
from engines.policy.batch import Batch, Outcome
from engines.policy.captured_sizes import CapturePlan, capture_plans
from engines.policy.draft_length import MOST_DRAFTS
from engines.policy.request import Emission, Request
from engines.policy.request_state import RequestState
from engines.policy.scheduler import Scheduler
from engines.policy.segment_shape import SegmentShape, catch_up_passes
from engines.record.run import Recorder, SegmentTime
from sim.acceptance import RequestAcceptance
from sim.conditions import Conditions
from sim.cost_protocols import DIMENSIONS, MeasuredCosts
from sim.gpu import Gpu, times_alone
from sim.population import Population
from sim.step_times import step_times

Process = Generator[simpy.Event, Any, Any]
Segments = list[tuple[RunningSegment, float]]
"""What a batch does on the device, and the seconds that each of it takes alone."""


class Bookkeeper(Protocol):
    """What is told about a run: engines.record.run.Recorder and engines.record.totals.Totals."""

    def completed(self, batch: Batch, segments: Iterable[SegmentTime], completed_s: float) -> None: ...

    def ended(self, state: RequestState) -> None: ...

    def rejected(self, request: Request, now: float, error: Exception) -> None: ...


_DRAFT: Final = Step.DRAFT
_PREFILL: Final = Step.PREFILL
_PREFILL_DRAFT: Final = Segment.PREFILL_DRAFT
_new: Final = tuple.__new__  # makes a named tuple in half the time that calling its class takes
_FOUND: Final = [Emission(matched) for matched in range(MOST_DRAFTS + 1)]  # by how many drafts agree


class _Worker:
    """One worker of a lane, and the batch that it is given next."""

    __slots__ = ("batch", "lane", "process", "segments", "waiting")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.process: simpy.Process | None = None
        self.batch: Batch | None = None
        self.segments: Segments = []
        self.waiting: simpy.Event | None = None  # while it has no batch

    def give(self, batch: Batch, segments: Segments) -> None:
        """Give it a batch, and wake it if it waits for one."""
        self.batch, self.segments = batch, segments
        if self.waiting is not None:
            self.waiting.succeed()
            self.waiting = None

    def take(self) -> tuple[Batch, Segments]:
        """Return what it was given."""
        batch, self.batch = self.batch, None
        assert batch is not None
        return batch, self.segments


class Replica:
    """One engine. It is given requests by `submit`, and calls `ended` when one has ended or was rejected.

    running: the batches that have started and not completed, by id. population: the requests that are here.
    segments: counts of those that ran (`segments`), of those beyond the profile (`beyond`), and in which dimensions.
    number: of the replica, from 0; each draws durations of its own. batch_ids: shared by replicas that are recorded
    together.
    """

    def __init__(
        self,
        environment: simpy.Environment,
        architecture: Architecture,
        conditions: Conditions,
        prefill_tokens: int,
        ended: Callable[[], object],
        number: int = 0,
        batch_ids: Iterator[int] | None = None,
    ) -> None:
        self.architecture = architecture
        self._environment = environment
        self._costs, self._acceptance = conditions.costs, conditions.acceptance
        costs = conditions.costs
        self._beyond = costs.beyond if isinstance(costs, MeasuredCosts) and costs.extrapolate else None
        self.segments = dict.fromkeys(("segments", "beyond", *DIMENSIONS), 0)
        self._seed, self._max_context = conditions.seed, conditions.max_context
        self._ended = ended
        self._plans = capture_plans(architecture, prefill_tokens, self._costs.captured)
        self._scheduler = Scheduler(architecture, batch_ids, step_times(self._costs, architecture, self._plans))
        self.running = self._scheduler.running
        self._bookkeeper: Bookkeeper = Recorder()
        self._tapes: dict[int, np.ndarray] | None = None
        self._draw = random.Random(self._seed + (number << 64)).random if conditions.jitter else None
        self._gpus = {device: Gpu(environment, self._costs.contention) for device in architecture.devices}
        self._known: dict[int, RequestAcceptance] = {}  # of the requests that are here
        self.population = Population()
        self._alone: simpy.Process | None = None  # the worker that runs the only batch, until another one starts
        self._workers: dict[tuple[str, int], _Worker] = {}
        for lane in architecture.lanes:
            for number in range(lane.workers):
                worker = self._workers[lane.name, number] = _Worker(lane)
                worker.process = environment.process(self._work(worker))

    def report_to(self, bookkeeper: Bookkeeper, tapes: dict[int, np.ndarray] | None) -> None:
        """Tell a bookkeeper what happens. tapes: gets the tapes, by request."""
        self._bookkeeper, self._tapes = bookkeeper, tapes

    @property
    def extrapolates(self) -> bool:
        """Whether segments can be beyond the profile."""
        return self._beyond is not None

    def check_ended(self) -> None:
        """Raise RuntimeError if requests are left that can never run, and AssertionError if Little's law fails."""
        if not self._scheduler.idle:
            raise RuntimeError(f"{len(self._scheduler.requests)} requests can never run: the architecture is stuck")
        self.population.check_littles_law()

    # --- the life of a worker ---------------------------------------------------------------------------

    def _work(self, worker: _Worker) -> Process:
        """Wait for a batch, occupy the device, report what came out, repeat.

        The only batch there is runs in one event as long as no other starts. Its end must be met to the last bit.
        Adding the difference of two times to the earlier one gives exactly the later one if that is at most twice the
        earlier one (Sterbenz's lemma), which only fails early in a run.
        """
        environment, lane, running = self._environment, worker.lane, self.running
        gpu, stream, host_s = self._gpus[lane.device], lane.stream, self._costs.host_s
        while True:
            if worker.batch is None:
                worker.waiting = environment.event()
                yield worker.waiting
            batch, segments = worker.take()
            alone, now = len(running) == 1, environment.now
            beside = 0 if alone else self._on_host() - 1
            before_s, after_s = host_s(batch.host_step, len(batch.members), batch.back_to_back, beside)
            if alone:
                times = times_alone(segments, now + before_s)
                end_s = times[-1].end_s + after_s
                alone = end_s <= 2 * now
            if alone:
                self._alone = worker.process
                try:
                    yield Timeout(environment, end_s - now)
                    self._alone = None
                except simpy.Interrupt:
                    times = yield from self._no_longer_alone(lane, segments, now + before_s, after_s, times)
            else:
                yield Timeout(environment, before_s)
                times = yield gpu.run(stream, segments, after_s)
            self._report(batch, times)  # this may bring the next batch

    def _no_longer_alone(
        self, lane: Lane, segments: Segments, arrival_s: float, after_s: float, times: list[SegmentTime]
    ) -> Process:
        """Go on with a batch that was the only one until now. times: of its segments, had it stayed so."""
        environment, gpu = self._environment, self._gpus[lane.device]
        now, left_s = environment.now, times[-1].end_s
        if now < arrival_s:
            yield Timeout(environment, arrival_s - now)
            return (yield gpu.run(lane.stream, segments, after_s))
        if now < left_s:
            return (yield gpu.go_on(lane.stream, segments, after_s, times))
        yield Timeout(environment, left_s + after_s - now)
        return times

    def _on_host(self) -> int:
        """How many batches are running, but not on a device."""
        return len(self.running) - sum([gpu.jobs for gpu in self._gpus.values()])

    def _dispatch(self, now: float) -> None:
        """Give workers what can start now."""
        started = self._scheduler.dispatch(now)
        if started and self._alone is not None:
            self._alone.interrupt()
            self._alone = None
        for batch in started:
            self._workers[batch.lane.name, batch.worker].give(batch, self._segments(batch))

    def _report(self, batch: Batch, times: list[SegmentTime]) -> None:
        now = self._environment.now
        ended = self._scheduler.complete(batch, self._outcomes(batch), now)
        self._bookkeeper.completed(batch, times, now)
        for state in ended:
            self._leave(state, now)
        self._dispatch(now)

    def _segments(self, batch: Batch) -> Segments:
        """What the batch does on the device, and how long each of it takes alone."""
        segments = []
        plan, draw, cost = self._plans.get(batch.lane.stream), self._draw, self._costs.cost
        counts = self._beyond is not None
        self.segments["segments"] += len(batch.shapes)
        for shape in batch.shapes:
            if shape[0] is _PREFILL_DRAFT and batch.step is not _PREFILL:
                segments.append(self._catch_up(shape, plan))
                continue
            if plan is not None:
                shape = plan.padded(shape)
            if counts:
                self._count(shape)
            duration_s, kernel_ms = cost(shape, None if draw is None else draw())
            segments.append((_new(RunningSegment, (shape[0], shape.rows, kernel_ms)), duration_s))
        return segments

    def _count(self, shape: SegmentShape) -> None:
        """Count a segment if it is beyond the profile."""
        if self._beyond is not None and (outside := self._beyond(shape)):
            self.segments["beyond"] += 1
            for dimension in outside:
                self.segments[dimension] += 1

    def _catch_up(self, shape: SegmentShape, plan: CapturePlan | None) -> tuple[RunningSegment, float]:
        """What the draft model does to catch up before it drafts."""
        quantile = None if self._draw is None else self._draw()
        passes = catch_up_passes(shape.tokens)
        if plan is not None:
            passes = [plan.padded_pass(each) for each in passes]
        self._count(passes[0])  # the longest
        costs = [self._costs.cost(each, quantile) for each in passes]
        return RunningSegment(shape.segment, passes[0].rows, costs[0].kernel_ms), sum(c.duration_s for c in costs)

    def _outcomes(self, batch: Batch) -> Sequence[Outcome]:
        """What the target finds for each member; nothing in a draft."""
        if batch.step is _DRAFT:
            return [None] * len(batch.members)
        known, outcomes = self._known, []
        for state in batch.members:
            k = state.draft_length  # 0 in prefill
            output_tokens, matches, _ = known[state.request.id]
            position = state.emitted
            matched = matches[position]
            if matched > k:
                matched = k
            if output_tokens < state.max_tokens and output_tokens - position <= matched + 1:
                outcomes.append(Emission(matched, output_tokens - position))
            else:
                outcomes.append(_FOUND[matched])
        return outcomes

    # --- the life of a request --------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Hand a request to the scheduler, which may start it at once."""
        now = self._environment.now
        try:
            allowed = self._output_limit(request)
            state = self._scheduler.submit(request, now, allowed)
        except (QueueFullError, InputError) as error:
            self._bookkeeper.rejected(request, now, error)
            self._ended()
            return
        self._known[request.id] = self._acceptance.acceptance(request, self._seed, state.max_tokens)
        self.population.enter(now)
        self._dispatch(now)

    def _output_limit(self, request: Request) -> int:
        """Output tokens that fit. Raises InputError for a prompt that leaves no room."""
        if self._max_context is None:
            return request.max_tokens
        room = self._max_context - request.prompt_tokens
        if room < 1:
            remedy = f"the context limit of {self._max_context} leaves no room for output; shorten the prompt"
            raise InputError("prompt_tokens", request.prompt_tokens, remedy)
        return min(request.max_tokens, room)

    def _leave(self, state: RequestState, now: float) -> None:
        self._bookkeeper.ended(state)
        self.population.leave(now, state)
        tape = self._known.pop(state.id).tape
        if tape is not None and self._tapes is not None:
            self._tapes[state.id] = tape[: state.emitted]
        self._ended()
