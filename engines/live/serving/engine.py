"""The live engine: the scheduler, driven by threads, streams and the wall clock."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import torch

from engines.errors import InputError
from engines.live.device.host import lane_settings
from engines.live.device.streams import make_stream
from engines.live.model.eager import EagerRunner
from engines.live.model.graphs import GraphRunner
from engines.live.model.pairs import Pair
from engines.live.model.stages import Stages
from engines.live.serving.executor import Executor, Found
from engines.live.serving.memory import plan_slots
from engines.live.serving.tape import TapeBuilder
from engines.policy.architecture import Architecture
from engines.policy.batch import Batch
from engines.policy.captured_sizes import capture_plans, prefill_tokens_of
from engines.policy.draft_length import DraftLength, covers
from engines.policy.load_adaptive import StepTimes
from engines.policy.request import Emission, Request, Settlement, Status
from engines.policy.request_state import RequestState
from engines.policy.scheduler import Scheduler
from engines.record.run import Recorder, SegmentTime


class RequestError(RuntimeError):
    """A request was rejected, failed or was cancelled."""


@dataclass(eq=False)
class Handle:
    """The client's view of one request.

    tokens: output so far; grows while the request runs. tape: [output tokens] int8, see engines.record.run.Run; set
    when the request has ended.
    """

    request: Request
    tokens: list[int] = field(default_factory=list)
    tape: np.ndarray | None = None
    state: RequestState | None = None
    error: str = ""
    _done: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def finish(self, error: str = "") -> None:
        """Mark the request as done. An earlier error is kept."""
        self.error = self.error or error
        self._done.set()

    def result(self, timeout_s: float | None = None) -> list[int]:
        """Wait for the end and return the output tokens.

        Raises RequestError if the request did not finish, and TimeoutError after `timeout_s` seconds.
        """
        if not self._done.wait(timeout_s):
            raise TimeoutError(f"request {self.request.id} is not done after {timeout_s} s")
        if self.error:
            raise RequestError(f"request {self.request.id}: {self.error}")
        return self.tokens


class LiveEngine:
    """Serve requests with a pair of models, in the lanes of an architecture. Use it as a context manager.

    max_context: tokens of prompt and output together; by default the positions that both models support, less the
    room for drafts. graphs: capture the stages as CUDA graphs at the start; by default on a GPU only. sampling: also
    capture them for sampled requests, which otherwise run uncaptured. prefill_tokens: largest prefill to capture, in
    tokens of all its prompts; by default prefill_tokens_of(architecture, max_context) in
    engines.policy.captured_sizes. progress: called with (captured, total) graphs. reserve: bytes of memory to leave
    unused, as in engines.live.serving.memory.plan_slots. Pass 0 if the memory was planned before the pair was loaded:
    loading itself may have used part of the reserve. times: of the architecture's steps, for a load-adaptive draft
    length (sim.step_times makes them of a profile).

    There is one thread per worker. The thread that reports a completed batch also dispatches the next ones. An engine
    can serve with any draft length within the bounds of its own (`record`): the graphs are the same.
    """

    def __init__(
        self, architecture: Architecture, pair: Pair, max_context: int | None = None, graphs: bool | None = None,
        sampling: bool = False, prefill_tokens: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None, reserve: int | None = None,
        times: StepTimes | None = None,
    ) -> None:  # fmt: skip
        configs, device = (pair.target.config, pair.draft.config), pair.device
        plan = plan_slots(architecture, configs, device, pair.dtype, max_context, reserve=reserve, loaded=True)
        plan.check(architecture.slots)
        self.architecture, self.pair = architecture, pair
        self._widest = architecture.draft_length
        self.stages = Stages(pair, architecture.slots, architecture.draft_length.maximum, max_context)
        self.max_context = self.stages.max_context
        self._times = times
        self.scheduler = Scheduler(architecture, times=times)
        self.lock = threading.RLock()
        self.news = threading.Condition(self.lock)
        self._handles: dict[int, Handle] = {}
        self._tapes: dict[int, TapeBuilder] = {}
        self.on_end: Callable[[Handle], None] = lambda handle: None
        self.recorder = Recorder()
        self._origin_s = time.perf_counter()
        self._completing_s: float | None = None  # time of the completion that is being reported, if any
        self._closing = self._paused = False
        self._crash: BaseException | None = None
        self._graphs = pair.device.type == "cuda" if graphs is None else graphs
        self.prefill_tokens = prefill_tokens or prefill_tokens_of(architecture, self.max_context)
        self._sampling, self._progress = sampling, progress
        self._executors: dict[int, Executor] = {}  # by stream
        self._inboxes: dict[tuple[str, int], queue.SimpleQueue[Batch | None]] = {}
        self._threads: list[threading.Thread] = []
        self._settings = ExitStack()

    # --- life -------------------------------------------------------------------------------------------

    def __enter__(self) -> LiveEngine:
        self._settings.enter_context(lane_settings(self.pair.device))
        self._executors = self._make_executors()
        for lane in self.architecture.lanes:
            for worker in range(lane.workers):
                inbox = self._inboxes[lane.name, worker] = queue.SimpleQueue()
                name = f"{lane.name}-{worker}"
                thread = threading.Thread(target=self._work, args=(inbox, self._executors[lane.stream]), name=name)
                self._threads.append(thread)
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel all requests, wait for the running steps, and stop the threads, whatever fails."""
        try:
            with self.lock:
                self._closing = True
                for request_id in list(self.scheduler.requests):
                    self.cancel(request_id)
                while self.scheduler.running and self._crash is None:
                    self.news.wait()
        finally:
            for inbox in self._inboxes.values():
                inbox.put(None)
            for thread in self._threads:
                thread.join()
            self._threads.clear()
            self._settings.close()

    def now(self) -> float:
        """Return the seconds since recording began."""
        return time.perf_counter() - self._origin_s

    def moment(self) -> float:
        """Return the time of the completion that is being reported, or now if none is. Call it under the lock."""
        return self.now() if self._completing_s is None else self._completing_s

    def record(
        self, on_end: Callable[[Handle], None] = lambda handle: None, draft_length: DraftLength | None = None
    ) -> Recorder:
        """Start a new record at time 0.

        on_end: called with each handle that is done, under the lock. draft_length: to serve with from now on, within
        the bounds of the engine's own. Raises InputError if it is not, or weighs times that the engine was not given,
        and RuntimeError while requests are being served. Nothing has changed then.
        """
        with self.lock:
            if not self.scheduler.idle:
                raise RuntimeError("requests are still being served")
            architecture = self.architecture
            if draft_length is not None:
                if not covers(self._widest, draft_length):
                    remedy = f"the engine was started for {self._widest.label}; start another"
                    raise InputError("draft_length", draft_length.label, remedy)
                architecture = architecture.replace(draft_length=draft_length)
            scheduler = Scheduler(architecture, times=self._times)
            for executor in self._executors.values():
                executor.stream.anchor()
            self.architecture, self.scheduler = architecture, scheduler
            self.recorder, self.on_end, self._origin_s = Recorder(), on_end, time.perf_counter()
            return self.recorder

    @property
    def crash(self) -> BaseException | None:
        """The error that broke the engine, or None."""
        return self._crash

    # --- clients ----------------------------------------------------------------------------------------

    def submit(self, request: Request) -> Handle:
        """Submit a request and return its handle. A request that cannot be served is done at once, with the error.

        Everything is checked and allocated before the scheduler accepts the request.
        """
        handle = Handle(request)
        with self.lock:
            now = self.moment()
            try:
                if self._closing or self._crash is not None:
                    raise RuntimeError("the engine is shut down")
                self._check(request)
                limit = min(request.max_tokens, self.max_context - request.prompt_tokens)
                tape = TapeBuilder(limit, self.stages.max_draft_length + 1)
                handle.state = self.scheduler.submit(request, now, limit)
            except Exception as error:
                if request.id not in self._handles:  # an active request with this ID keeps its row
                    self.recorder.rejected(request, now, error)
                self._release(handle, str(error))
                return handle
            self._handles[request.id], self._tapes[request.id] = handle, tape
            self._dispatch(now)
        return handle

    def cancel(self, request_id: int) -> None:
        """Cancel a request, waiting or running. It is done at once, or after its running step."""
        with self.lock:
            now = self.now()
            state = self.scheduler.cancel(request_id, now)
            if state is not None:
                self._end(state)
                self._dispatch(now)

    def _check(self, request: Request) -> None:
        request.check()
        prompt = request.prompt
        if request.prompt_tokens >= self.max_context:
            raise InputError("prompt_tokens", request.prompt_tokens, f"max_context is {self.max_context}; shorten it")
        if not isinstance(prompt, Sequence) or len(prompt) != request.prompt_tokens:
            given = len(prompt) if isinstance(prompt, Sequence) else prompt
            raise InputError("prompt", given, f"give {request.prompt_tokens} token ids")
        if set(map(type, prompt)) != {int} or min(prompt) < 0 or max(prompt) >= self.pair.vocabulary:
            wrong = next(t for t in prompt if type(t) is not int or not 0 <= t < self.pair.vocabulary)
            remedy = f"no such token; use whole numbers below {self.pair.vocabulary}, the size of the vocabulary"
            raise InputError("prompt", wrong, remedy)

    def sequence(self, request_id: int) -> list[int]:
        """Return prompt and output so far of an active request."""
        handle = self._handles[request_id]
        return [*(handle.request.prompt or ()), *handle.tokens]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Wait until no step runs, and let none start during the block. Holds the lock."""
        with self.lock:
            self._paused = True
            try:
                while self.scheduler.running and self._crash is None:
                    self.news.wait()
                yield
            finally:
                self._paused = False
                self._dispatch(self.now())

    # --- lane workers -----------------------------------------------------------------------------------

    def _make_executors(self) -> dict[int, Executor]:
        """Make one executor per stream, and capture its graphs."""
        priorities = {lane.stream: lane.stream_priority for lane in self.architecture.lanes}
        streams = {number: make_stream(self.pair.device, priority) for number, priority in priorities.items()}
        if not self._graphs:
            return {n: Executor(self.stages, stream, EagerRunner(self.stages)) for n, stream in streams.items()}
        plans = capture_plans(self.architecture, self.prefill_tokens)
        runners = {n: GraphRunner(self.stages, stream, plans[n], self._sampling) for n, stream in streams.items()}
        total, done = sum(map(len, runners.values())), itertools.count(1)
        for runner in runners.values():
            runner.capture(lambda: self._progress(next(done), total))
        return {n: Executor(self.stages, streams[n], runner) for n, runner in runners.items()}

    def _work(self, inbox: queue.SimpleQueue[Batch | None], executor: Executor) -> None:
        with torch.inference_mode():
            while (batch := inbox.get()) is not None:
                try:
                    segments = [shape.segment for shape in batch.shapes]
                    self._finish(batch, *executor.execute(segments, batch.members))
                except BaseException as error:
                    self._fall(error)
                    raise

    # --- news for the scheduler -------------------------------------------------------------------------

    def _finish(self, batch: Batch, found: list[Found], segments: list[SegmentTime]) -> None:
        with self.lock:
            now, origin_s = self.now(), self._origin_s
            self._completing_s = now
            ended = self.scheduler.complete(batch, [f.outcome for f in found], now)
            results = list(zip(batch.members, found, batch.settlements, batch.draft_lengths, strict=True))
            for result in results:
                if result[0].ended:
                    self._book(*result)
            for state in ended:
                self._end(state)
            self._dispatch(now)
            self._completing_s = None
            # The next batches have been dispatched. No lane waits for the bookkeeping below.
            for result in results:
                if not result[0].ended:
                    self._book(*result)
            times = [SegmentTime(s, start - origin_s, end - origin_s) for s, start, end, _ in segments]
            self.recorder.completed(batch, times, now)
            if self._closing or self._paused:
                self.news.notify_all()

    def _book(self, state: RequestState, found: Found, settlement: Settlement | None, k: int) -> None:
        """Add the results of a step for one request to its tape and tokens."""
        emitted = settlement.emitted if settlement else 0
        tape, position = self._tapes[state.id], state.emitted - emitted
        if found.draft_agrees is not None:
            tape.draft_agrees(position - 1, found.draft_agrees)
        if isinstance(found.outcome, Emission) and settlement is not None and k:
            tape.verified(position, found.outcome.matched, k)
        self._handles[state.id].tokens += found.tokens[:emitted]

    def _dispatch(self, now: float) -> None:
        if self._crash is None and not self._paused:
            for batch in self.scheduler.dispatch(now):
                self._inboxes[batch.lane.name, batch.worker].put(batch)

    def _end(self, state: RequestState) -> None:
        handle = self._handles.pop(state.id)
        self.recorder.ended(state)
        handle.tape = self._tapes.pop(state.id).bits(state.emitted)
        self._release(handle, "" if state.status is Status.FINISHED else state.error or state.finish_reason)

    def _release(self, handle: Handle, error: str) -> None:
        handle.finish(error)
        self.on_end(handle)
        self.news.notify_all()

    def _fall(self, error: BaseException) -> None:
        """Record a failure of the engine itself, and end every request with the error, so that nothing hangs."""
        with self.lock:
            self._crash = error
            for handle in self._handles.values():
                handle.finish(f"the engine failed: {type(error).__name__}: {error}")
            self.news.notify_all()
