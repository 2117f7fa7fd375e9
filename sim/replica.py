"""One simulated engine: the live scheduler on a simulated clock.

Every worker of every lane is a SimPy process, and devices take the time that the costs and the contention say. What
to run is decided by engines.policy.scheduler.Scheduler alone, and engines.record.run.Recorder writes the record,
both exactly as in the live engine.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import simpy

from calibrate.contention import RunningSegment
from engines.errors import InputError
from engines.policy.architecture import Architecture, Lane, Segment, Step
from engines.policy.batch import Batch, Outcome
from engines.policy.captured_sizes import CapturePlan, capture_plans
from engines.policy.draft_length import MOST_DRAFTS
from engines.policy.request import Emission, Request, RequestState
from engines.policy.scheduler import QueueFullError, Scheduler
from engines.policy.segment_shape import SegmentShape, catch_up_passes
from engines.record.run import Recorder, SegmentTime
from sim.acceptance import AcceptanceSource, RequestAcceptance
from sim.costs import Costs, MeasuredCosts
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


@dataclass(frozen=True)
class Conditions:
    """What all replicas of a simulation share; sim.engine.simulate explains the fields."""

    costs: Costs
    acceptance: AcceptanceSource
    seed: int = 0
    jitter: bool = True
    max_context: int | None = None
    prefill_tokens: int | None = None


_DRAFT, _PREFILL, _PREFILL_DRAFT = Step.DRAFT, Step.PREFILL, Segment.PREFILL_DRAFT
_new = tuple.__new__  # makes a named tuple in half the time that calling its class takes
_FOUND = [Emission(matched) for matched in range(MOST_DRAFTS + 1)]  # by how many drafts agree


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
        self.segments: Counter[str] = Counter()
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
        self._given: dict[tuple[str, int], tuple[Batch, Segments]] = {}  # by worker
        self._waiting: dict[tuple[str, int], simpy.Event] = {}  # workers that are idle
        self._alone: simpy.Process | None = None  # the worker in _run_alone, until another batch starts
        for lane in architecture.lanes:
            for worker in range(lane.workers):
                environment.process(self._worker(lane, worker))

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

    def _worker(self, lane: Lane, worker: int) -> Process:
        """Wait for a batch, occupy the device, report what came out, repeat."""
        environment, gpu, key = self._environment, self._gpus[lane.device], (lane.name, worker)
        while True:
            if key not in self._given:
                self._waiting[key] = environment.event()
                yield self._waiting[key]
            batch, segments = self._given.pop(key)
            alone = len(self.running) == 1
            beside = 0 if alone else self._on_host() - 1
            before_s, after_s = self._costs.host_s(batch.host_step, len(batch.members), batch.back_to_back, beside)
            if alone:
                times = yield from self._run_alone(lane, segments, before_s, after_s)
            else:
                yield environment.timeout(before_s)
                times = yield gpu.run(lane.stream, segments, after_s)
            self._report(batch, times)  # this may bring the next batch

    def _run_alone(self, lane: Lane, segments: Segments, before_s: float, after_s: float) -> Process:
        """Run the only batch there is, in one event as long as no other starts.

        Its end must be met to the last bit. Adding the difference of two times to the earlier one gives exactly the
        later one if that is at most twice the earlier one (Sterbenz's lemma), which only fails early in a run.
        """
        environment, gpu = self._environment, self._gpus[lane.device]
        now = environment.now
        arrival_s = now + before_s
        times = times_alone(segments, arrival_s)
        left_s = times[-1].end_s
        end_s = left_s + after_s
        if end_s > 2 * now:
            yield environment.timeout(before_s)
            return (yield gpu.run(lane.stream, segments, after_s))
        self._alone = environment.active_process
        try:
            yield environment.timeout(end_s - now)
            self._alone = None
        except simpy.Interrupt:
            if environment.now < arrival_s:
                yield environment.timeout(arrival_s - environment.now)
                return (yield gpu.run(lane.stream, segments, after_s))
            if environment.now < left_s:
                return (yield gpu.go_on(lane.stream, segments, after_s, times))
            yield environment.timeout(end_s - environment.now)
        return times

    def _on_host(self) -> int:
        """How many batches are running, but not on a device."""
        return len(self.running) - sum([gpu.jobs for gpu in self._gpus.values()])

    def _dispatch(self) -> None:
        """Give workers what can start now, and wake those that wait."""
        started = self._scheduler.dispatch(self._environment.now)
        if started and self._alone is not None:
            self._alone.interrupt()
            self._alone = None
        for batch in started:
            key = batch.lane.name, batch.worker
            self._given[key] = batch, self._segments(batch)
            if key in self._waiting:
                self._waiting.pop(key).succeed()

    def _report(self, batch: Batch, times: list[SegmentTime]) -> None:
        now = self._environment.now
        ended = self._scheduler.complete(batch, self._outcomes(batch), now)
        self._bookkeeper.completed(batch, times, now)
        for state in ended:
            self._leave(state)
        self._dispatch()

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
            self.segments.update(outside, beyond=1)

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
        for state, k in zip(batch.members, batch.draft_lengths, strict=True):  # k is 0 in prefill
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
        self._dispatch()

    def _output_limit(self, request: Request) -> int:
        """Output tokens that fit. Raises InputError for a prompt that leaves no room."""
        if self._max_context is None:
            return request.max_tokens
        room = self._max_context - request.prompt_tokens
        if room < 1:
            remedy = f"the context limit of {self._max_context} leaves no room for output; shorten the prompt"
            raise InputError("prompt_tokens", request.prompt_tokens, remedy)
        return min(request.max_tokens, room)

    def _leave(self, state: RequestState) -> None:
        self._bookkeeper.ended(state)
        self.population.leave(self._environment.now, state)
        tape = self._known.pop(state.id).tape
        if tape is not None and self._tapes is not None:
            self._tapes[state.id] = tape[: state.emitted]
        self._ended()
