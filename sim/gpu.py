"""A device whose streams run side by side and slow one another.

A stream is a FIFO of pieces; a piece is the segments of one work, back to back. Streams share the device by the
contention model: whenever a segment starts or ends, what is left of the others goes on at their new rates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import simpy

from calibrate.contention import RunningSegment
from engines.errors import InputError
from engines.record.run import SegmentTime
from sim.costs import Contention


class Piece:
    """The segments of one work on a stream.

    segments: each with its duration alone, seconds. done: succeeds with one SegmentTime a segment.
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
        """Raises InputError for a duration, other than 0, that does not move the clock: time would stand still."""
        self.start_s, self.left_s = now, self.segments[len(self.times)][1]
        if self.left_s != 0 and not now + self.left_s > now:
            remedy = f"it does not move a clock that stands at {now:g} s; calibrate again, or simulate a shorter load"
            raise InputError(f"duration of {self.current.segment} (s)", self.left_s, remedy)

    def end_segment(self, now: float) -> bool:
        """Book the segment that ran; whether there is no other."""
        running, solo_s = self.segments[len(self.times)]
        self.times.append(SegmentTime(running.segment, self.start_s, now, solo_s))
        return len(self.times) == len(self.segments)


class Gpu:
    """One device. Times are those of the SimPy environment."""

    def __init__(self, environment: simpy.Environment, contention: Contention) -> None:
        self._environment = environment
        self._contention = contention
        self._waiting: dict[int, deque[Piece]] = {}  # behind the running piece of each stream
        self._running: dict[int, Piece] = {}  # by stream
        self._rated_s = 0.0  # when the rates were last set
        self._next_end: simpy.Event | None = None

    def run(self, stream: int, segments: Sequence[tuple[RunningSegment, float]]) -> simpy.Event:
        """Queue a piece on a stream. The event succeeds with its SegmentTimes when its last segment ends."""
        piece = Piece(segments, self._environment.event())
        if stream in self._running:
            self._waiting.setdefault(stream, deque()).append(piece)
        else:
            self._progress()
            self._start(stream, piece)
            self._set_rates()
        return piece.done

    def _start(self, stream: int, piece: Piece) -> None:
        self._running[stream] = piece
        piece.begin_segment(self._environment.now)

    def _progress(self) -> None:
        """Take what was done since the rates were last set from what is left."""
        now = self._environment.now
        passed = now - self._rated_s
        if passed > 0:
            for piece in self._running.values():
                piece.left_s = max(0.0, piece.left_s - passed * piece.rate)
        self._rated_s = now

    def _set_rates(self) -> None:
        """New rates for what runs now, and a date with the segment that ends first."""
        running = self._running
        if not running:
            self._next_end = None
            return
        if len(running) == 1:
            ((stream, piece),) = running.items()
            piece.rate, soonest_s = 1.0, piece.left_s
        else:
            rates = self._contention.rates([piece.current for piece in running.values()])
            stream, soonest_s = 0, float("inf")
            for (number, piece), rate in zip(running.items(), rates, strict=True):
                piece.rate = rate
                if piece.left_s / rate < soonest_s:
                    stream, soonest_s = number, piece.left_s / rate
        end = self._environment.timeout(soonest_s, stream)
        end.callbacks.append(self._end)
        self._next_end = end

    def _end(self, event: simpy.Event) -> None:
        """A segment is over, unless the rates have changed since this date was made."""
        if event is not self._next_end:
            return
        now = self._environment.now
        stream: int = event.value  # type: ignore[assignment]
        self._progress()
        piece = self._running[stream]
        if piece.end_segment(now):
            piece.done.succeed(piece.times)
            waiting = self._waiting.get(stream)
            del self._running[stream]
            if waiting:
                self._start(stream, waiting.popleft())
        else:
            piece.begin_segment(now)
        self._set_rates()
