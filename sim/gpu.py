"""A simulated device whose streams run concurrently and slow one another down.

A stream is a FIFO queue of jobs. A job runs the segments of one batch, one after another. Streams share the device
according to the contention model: whenever a segment starts or ends, all rates are set anew, and the remaining work
of each running segment continues at its new rate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import simpy

from calibrate.contention import RunningSegment
from engines.errors import InputError
from engines.record.run import SegmentTime
from sim.costs import Contention


class Job:
    """The segments of one batch on a stream.

    segments: each with its solo duration in seconds. done: succeeds with one SegmentTime per segment.
    """

    __slots__ = ("done", "left_s", "rate", "segments", "start_s", "times")

    def __init__(self, segments: Sequence[tuple[RunningSegment, float]], done: simpy.Event) -> None:
        self.segments = segments
        self.done = done
        self.times: list[SegmentTime] = []
        self.start_s = self.left_s = 0.0
        self.rate = 1.0

    @property
    def current(self) -> RunningSegment:
        return self.segments[len(self.times)][0]

    def begin_segment(self, now: float) -> None:
        """Start the next segment. Raises InputError for a duration, other than 0, that does not advance the clock."""
        self.start_s, self.left_s = now, self.segments[len(self.times)][1]
        if self.left_s != 0 and not now + self.left_s > now:
            remedy = f"it does not advance the clock at {now:g} s; calibrate again, or simulate a shorter load"
            raise InputError(f"duration of {self.current.segment} (s)", self.left_s, remedy)

    def end_segment(self, now: float) -> bool:
        """Record the segment that ran. Returns whether it was the last."""
        running, solo_s = self.segments[len(self.times)]
        self.times.append(SegmentTime(running.segment, self.start_s, now, solo_s))
        return len(self.times) == len(self.segments)


class Gpu:
    """One simulated device. Times are those of the SimPy environment, in seconds."""

    def __init__(self, environment: simpy.Environment, contention: Contention) -> None:
        self._environment = environment
        self._contention = contention
        self._waiting: dict[int, deque[Job]] = {}  # behind the running job of each stream
        self._running: dict[int, Job] = {}  # by stream
        self._rated_s = 0.0  # when the rates were last set
        self._next_end: simpy.Event | None = None

    def run(self, stream: int, segments: Sequence[tuple[RunningSegment, float]]) -> simpy.Event:
        """Queue a job on a stream. The returned event succeeds with its SegmentTimes when its last segment ends."""
        job = Job(segments, self._environment.event())
        if stream in self._running:
            self._waiting.setdefault(stream, deque()).append(job)
        else:
            self._progress()
            self._start(stream, job)
            self._set_rates()
        return job.done

    def _start(self, stream: int, job: Job) -> None:
        self._running[stream] = job
        job.begin_segment(self._environment.now)

    def _progress(self) -> None:
        """Subtract the work done since the rates were last set."""
        now = self._environment.now
        passed = now - self._rated_s
        if passed > 0:
            for job in self._running.values():
                job.left_s = max(0.0, job.left_s - passed * job.rate)
        self._rated_s = now

    def _set_rates(self) -> None:
        """Set the rates of the running segments, and schedule the end of the one that ends first."""
        running = self._running
        if not running:
            self._next_end = None
            return
        if len(running) == 1:
            ((stream, job),) = running.items()
            job.rate, soonest_s = 1.0, job.left_s
        else:
            rates = self._contention.rates([job.current for job in running.values()])
            stream, soonest_s = 0, float("inf")
            for (number, job), rate in zip(running.items(), rates, strict=True):
                job.rate = rate
                if job.left_s / rate < soonest_s:
                    stream, soonest_s = number, job.left_s / rate
        end = self._environment.timeout(soonest_s, stream)
        end.callbacks.append(self._end)
        self._next_end = end

    def _end(self, event: simpy.Event) -> None:
        """End a segment, unless the rates have changed since this event was scheduled."""
        if event is not self._next_end:
            return
        now = self._environment.now
        stream: int = event.value  # type: ignore[assignment]
        self._progress()
        job = self._running[stream]
        if job.end_segment(now):
            job.done.succeed(job.times)
            waiting = self._waiting.get(stream)
            del self._running[stream]
            if waiting:
                self._start(stream, waiting.popleft())
        else:
            job.begin_segment(now)
        self._set_rates()
