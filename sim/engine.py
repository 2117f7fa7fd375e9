"""The simulated engine: the live scheduler on a simulated clock.

Every worker of every lane is a SimPy process, clients submit the requests of the workload, and devices
take the time that the costs and the contention say. What to run is decided by engines.policy.scheduler.Scheduler
alone, and engines.record.run.Recorder writes the record, both exactly as in the live engine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import simpy

from calibrate.contention import RunningSegment
from calibrate.profile import Profile
from engines.errors import InputError, require_whole
from engines.policy.architecture import Architecture, Lane, Step
from engines.policy.batch import Batch, Outcome
from engines.policy.captured_sizes import capture_plans, prefill_tokens_of
from engines.policy.draft_length import MOST_DRAFTS
from engines.policy.request import Emission, Request, RequestState
from engines.policy.scheduler import QueueFullError, Scheduler
from engines.record.run import Recorder, Run, SegmentTime
from engines.record.totals import Totals
from engines.workload.clients import Clients
from engines.workload.workload import Workload
from sim.acceptance import AcceptanceSource, RequestAcceptance, Tapes
from sim.costs import CostModel, Costs
from sim.gpu import Gpu, times_alone
from sim.population import Population

Process = Generator[simpy.Event, Any, Any]
Segments = list[tuple[RunningSegment, float]]
"""What a batch does on the device, and the seconds that each of it takes alone."""
Progress = Callable[[int, int], None]
"""Told (requests ended, requests in all)."""


def simulate(
    architecture: Architecture,
    workload: Workload,
    costs: Profile | Costs,
    acceptance: AcceptanceSource,
    *,
    seed: int = 0,
    jitter: bool = True,
    max_context: int | None = None,
    prefill_tokens: int | None = None,
    info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Predict what a live engine would do with a workload.

    costs: a profile, or a cost model made of one. jitter: draw each stage's duration from the measured quantiles
    (False: its mean). max_context: tokens of prompt and output together; longer outputs are cut, and prompts that
    leave no room are rejected. prefill_tokens: most tokens of a captured prefill, where the engine captures any; by
    default what engines.policy.captured_sizes.prefill_tokens_of has for the longest prompt. info: more plain values
    for run.toml.

    The same arguments give the same record, byte for byte. Raises InputError for tapes that are shorter than the
    outputs asked for, before anything runs, from the costs for batch outside the measured range and from the device
    for batch too short to be seen on its clock. Raises AssertionError if Little's law does not hold over the run.
    """
    engine = _Engine(architecture, workload, costs, acceptance, seed, jitter, max_context, prefill_tokens, progress)
    recorder, tapes = Recorder(), dict[int, np.ndarray]()
    engine.run(recorder, tapes)
    described = {
        **_asked(architecture, workload),
        "acceptance": acceptance.describe(),
        "costs": engine.costs.describe(),
        "seed": seed,
        "jitter": jitter,
        **({} if max_context is None else {"max_context": max_context}),
        "versions": {name: version(name) for name in ("numpy", "simpy")},
        **(info or {}),
    }
    return recorder.run(described, tapes)


def summarise(
    architecture: Architecture,
    workload: Workload,
    costs: Profile | Costs,
    acceptance: AcceptanceSource,
    *,
    seed: int = 0,
    jitter: bool = True,
    max_context: int | None = None,
    prefill_tokens: int | None = None,
    progress: Progress | None = None,
    objectives: tuple[float, float] | None = None,
) -> dict[str, float]:
    """Return engines.record.metrics.summary of what `simulate` records with these arguments, without the record.

    The numbers are the same to the last bit. Memory does not grow with the length of the run, apart from 80 bytes per
    request (200 while they are put in order at the end). objectives: a TTFT and a TPOT in seconds, for which to add
    goodput_requests_per_s. Raises what `simulate` does.
    """
    engine = _Engine(architecture, workload, costs, acceptance, seed, jitter, max_context, prefill_tokens, progress)
    totals = Totals(engine.running)
    engine.run(totals)
    return totals.summary(_asked(architecture, workload), objectives)


def _asked(architecture: Architecture, workload: Workload) -> dict[str, Any]:
    concurrency = {} if workload.concurrency is None else {"concurrency": workload.concurrency}
    return {
        "kind": "simulated",
        "architecture": architecture.to_dict(),
        "workload": {**workload.info, **concurrency},
    }


_DRAFT = Step.DRAFT
_new = tuple.__new__  # makes a named tuple in half the time that calling its class takes
_FOUND = [Emission(matched) for matched in range(MOST_DRAFTS + 1)]  # by how many drafts agree


class _Engine:
    def __init__(
        self,
        architecture: Architecture,
        workload: Workload,
        costs: Profile | Costs,
        acceptance: AcceptanceSource,
        seed: int,
        jitter: bool,
        max_context: int | None,
        prefill_tokens: int | None,
        progress: Progress | None,
    ) -> None:
        require_whole("seed", seed, 0)
        if isinstance(acceptance, Tapes):
            acceptance.check(workload.requests, max_context)
        self.costs = CostModel(costs) if isinstance(costs, Profile) else costs
        longest = max((request.prompt_tokens for request in workload.requests), default=1)
        prefill_tokens = prefill_tokens or prefill_tokens_of(architecture, longest)
        self._plans = capture_plans(architecture, prefill_tokens, self.costs.captured)
        self._environment = simpy.Environment()
        self._scheduler = Scheduler(architecture)
        self.running = self._scheduler.running
        self._recorder: Recorder | Totals = Recorder()
        self._tapes: dict[int, np.ndarray] | None = None
        self._clients = Clients(workload, self._submit)
        self._acceptance = acceptance
        self._seed = seed
        self._draw = random.Random(seed).random if jitter else None
        self._max_context = max_context
        self._progress = progress
        self._gpus = {device: Gpu(self._environment, self.costs.contention) for device in architecture.devices}
        self._known: dict[int, RequestAcceptance] = {}  # of the requests that are here
        self._population = Population()
        self._given: dict[tuple[str, int], tuple[Batch, Segments]] = {}  # by worker
        self._waiting: dict[tuple[str, int], simpy.Event] = {}  # workers that are idle
        self._alone: simpy.Process | None = None  # the worker in _run_alone, until another batch starts
        for lane in architecture.lanes:
            for worker in range(lane.workers):
                self._environment.process(self._worker(lane, worker))
        self._environment.process(self._arrivals())

    def run(self, recorder: Recorder | Totals, tapes: dict[int, np.ndarray] | None = None) -> None:
        """Run to the end. recorder: is told what happens. tapes: gets the tapes, by request."""
        self._recorder, self._tapes = recorder, tapes
        self._environment.run()
        if not self._scheduler.idle:
            raise RuntimeError(f"{len(self._scheduler.requests)} requests can never run: the architecture is stuck")
        self._population.check_littles_law()

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
            before_s, after_s = self.costs.host_s(batch.step, len(batch.members), batch.back_to_back, beside)
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
        self._recorder.completed(batch, times, now)
        for state in ended:
            self._leave(state)
        self._dispatch()

    def _segments(self, batch: Batch) -> Segments:
        """What the batch does on the device, and how long each of it takes alone."""
        segments = []
        plan, draw, cost = self._plans.get(batch.lane.stream), self._draw, self.costs.cost
        for shape in batch.shapes:
            if plan is not None:
                shape = plan.padded(shape)
            duration_s, kernel_ms = cost(shape, None if draw is None else draw())
            segments.append((_new(RunningSegment, (shape[0], shape.rows, kernel_ms)), duration_s))
        return segments

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

    def _arrivals(self) -> Process:
        """Submit what is due, then wait for what is planned. The clients of a closed loop do the rest."""
        due_s: float | None = 0.0
        while due_s is not None:
            yield self._environment.timeout(max(0.0, due_s - self._environment.now))
            due_s = self._clients.submit_due(due_s)

    def _think(self, think_s: float) -> Process:
        yield self._environment.timeout(think_s)
        self._clients.submit_due(self._environment.now)

    def _submit(self, request: Request) -> None:
        """Hand a request to the scheduler, which may start it at once."""
        now = self._environment.now
        try:
            allowed = self._output_limit(request)
            state = self._scheduler.submit(request, now, allowed)
        except (QueueFullError, InputError) as error:
            self._recorder.rejected(request, now, error)
            self._client_goes_on()
            return
        self._known[request.id] = self._acceptance.acceptance(request, self._seed, state.max_tokens)
        self._population.enter(now)
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
        self._recorder.ended(state)
        self._population.leave(self._environment.now, state)
        tape = self._known.pop(state.id).tape
        if tape is not None and self._tapes is not None:
            self._tapes[state.id] = tape[: state.emitted]
        self._client_goes_on()

    def _client_goes_on(self) -> None:
        """A request has ended or was refused."""
        now = self._environment.now
        think_s = self._clients.ended(now)
        if think_s == 0:
            self._clients.submit_due(now)
        elif think_s is not None:
            self._environment.process(self._think(think_s))
        if self._progress is not None:
            self._progress(self._clients.done, self._clients.total)
