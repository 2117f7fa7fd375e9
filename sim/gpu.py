"""A simulated device whose streams run concurrently and slow one another down.

A stream is a FIFO queue of jobs. A job runs the segments of one batch, one after another. Streams share the device
according to the contention model: whenever a segment starts or ends, all rates are set anew, and the remaining work
of each running segment continues at its new rate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import simpy

from calibrate.contention import RunningSegment
from engines.errors import InputError
from engines.record.run import SegmentTime
from sim.cost_protocols import Contention

_new: Final = tuple.__new__  # makes a named tuple in half the time that calling its class takes


class Job(simpy.Event):
    """The segments of one batch on a stream. Succeeds with one SegmentTime per segment, `after_s` after the last.

    segments: each with its solo duration in seconds.
    """

    __slots__ = ("after_s", "left_s", "rate", "segments", "start_s", "times")

    def __init__(
        self, environment: simpy.Environment, segments: Sequence[tuple[RunningSegment, float]], after_s: float = 0.0
    ) -> None:
        super().__init__(environment)
        self.segments = segments
        self.after_s = after_s
        self.times: list[SegmentTime] = []
        self.start_s = self.left_s = 0.0
        self.rate = 1.0

    @property
    def current(self) -> RunningSegment:
        return self.segments[len(self.times)][0]

    def begin_segment(self, now: float) -> None:
        """Start the next segment. Raises InputError for a duration, other than 0, that does not advance the clock."""
        running, solo_s = self.segments[len(self.times)]
        if not now + solo_s > now and solo_s != 0:
            raise _too_short(running, solo_s, now)
        self.start_s, self.left_s = now, solo_s

    def end_segment(self, now: float) -> bool:
        """Record the segment that ran. Returns whether it was the last."""
        times, segments = self.times, self.segments
        running, solo_s = segments[len(times)]
        times.append(_new(SegmentTime, (running[0], self.start_s, now, solo_s)))
        return len(times) == len(segments)

    def end(self) -> None:
        """The last segment has ended."""
        self._ok, self._value = True, self.times  # as succeed() does, but later
        self.env.schedule(self, delay=self.after_s)


def times_alone(segments: Sequence[tuple[RunningSegment, float]], start_s: float) -> list[SegmentTime]:
    """Return when these segments run if nothing else does. Raises InputError as Job.begin_segment does."""
    times = []
    for running, solo_s in segments:
        end_s = start_s + solo_s
        if not end_s > start_s and solo_s != 0:
            raise _too_short(running, solo_s, start_s)
        times.append(_new(SegmentTime, (running[0], start_s, end_s, solo_s)))
        start_s = end_s
    return times


def _too_short(running: RunningSegment, solo_s: float, now: float) -> InputError:
    remedy = f"too short: it does not advance the clock at {now:g} s; calibrate again, or simulate a shorter load"
    return InputError(f"duration of {running.segment} (s)", solo_s, remedy)


class Gpu:
    """One simulated device. Times are those of the SimPy environment, in seconds.

    jobs: how many are running or waiting.
    """

    def __init__(self, environment: simpy.Environment, contention: Contention) -> None:
        self.jobs = 0
        self._environment = environment
        self._contention = contention
        self._waiting: dict[int, deque[Job]] = {}  # behind the running job of each stream
        self._running: dict[int, Job] = {}  # by stream
        self._rated_s = 0.0  # when the rates were last set
        self._next_end: simpy.Event | None = None

    def run(self, stream: int, segments: Sequence[tuple[RunningSegment, float]], after_s: float = 0.0) -> Job:
        """Queue the segments of a batch on a stream."""
        job = Job(self._environment, segments, after_s)
        self.jobs += 1
        if stream in self._running:
            self._waiting.setdefault(stream, deque()).append(job)
        else:
            self._progress()
            self._start(stream, job)
            self._set_rates()
        return job

    def go_on(
        self,
        stream: int,
        segments: Sequence[tuple[RunningSegment, float]],
        after_s: float,
        alone: Sequence[SegmentTime],
    ) -> Job:
        """Go on with segments that have run alone so far, at the times given. Nothing else is on the device."""
        now = self._environment.now
        job = Job(self._environment, segments, after_s)
        job.times += [time for time in alone if time.end_s <= now]
        job.begin_segment(alone[len(job.times)].start_s)
        self.jobs += 1
        self._running[stream] = job
        self._rated_s = job.start_s
        self._schedule_end(stream, alone[len(job.times)].end_s - now)
        return job

    def _start(self, stream: int, job: Job) -> None:
        self._running[stream] = job
        job.begin_segment(self._environment.now)

    def _progress(self) -> None:
        """Subtract the work done since the rates were last set."""
        now = self._environment.now
        passed = now - self._rated_s
        if passed > 0:
            for job in self._running.values():
                left_s = job.left_s - passed * job.rate
                job.left_s = left_s if left_s > 0.0 else 0.0
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
                left_s = job.left_s / rate
                if left_s < soonest_s:
                    stream, soonest_s = number, left_s
        self._schedule_end(stream, soonest_s)

    def _schedule_end(self, stream: int, delay: float) -> None:
        self._next_end = end = simpy.Timeout(self._environment, delay, stream)
        end.callbacks.append(self._end)

    def _end(self, event: simpy.Event) -> None:
        """End a segment, unless the rates have changed since this event was scheduled."""
        if event is not self._next_end:
            return
        now = self._environment.now
        stream: int = event.value  # type: ignore[assignment]
        self._progress()
        job = self._running[stream]
        if job.end_segment(now):
            self.jobs -= 1
            job.end()
            waiting = self._waiting.get(stream)
            del self._running[stream]
            if waiting:
                self._start(stream, waiting.popleft())
        else:
            job.begin_segment(now)
        self._set_rates()
