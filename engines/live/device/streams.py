"""A stream runs one thing after another, first come first served: a CUDA stream, or its like on the CPU."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

Found = TypeVar("Found")
LEAST_BASELINE_S = 1.0  # between two anchors that tell the drift of a clock
ANCHOR_TRIES = 20


class Stream(Protocol):
    """What a lane worker needs of a stream. cuda: the CUDA stream, None on the CPU."""

    cuda: torch.cuda.Stream | None

    def turn(self) -> Any:
        """Context in which this thread, and no other, may give the stream work; in order of asking."""

    def anchor(self) -> None:
        """Relate the stream's time to the host's anew. The stream must be idle."""

    def mark(self) -> Any:
        """A point in the stream's time."""

    def times(self, marks: Sequence[Any]) -> list[float]:
        """Seconds on the host clock (time.perf_counter) at which the stream passed the marks; waits for them."""


class FairLock:
    """A lock that serves waiting threads in the order in which they came."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._held = False

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()

    def __exit__(self, *exc: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False


class HostStream:
    """Work runs in the calling thread while it has its turn."""

    cuda: torch.cuda.Stream | None = None

    def __init__(self) -> None:
        self._lock = FairLock()

    def turn(self) -> FairLock:
        return self._lock

    def anchor(self) -> None:
        """Its time is the host's."""

    def mark(self) -> float:
        return time.perf_counter()

    def times(self, marks: Sequence[float]) -> list[float]:
        return list(marks)


class DeviceClock:
    """The host's time of moments on a device, whose clock drifts (by about 25 microseconds per second on an H100).

    The drift is known once two anchors lie LEAST_BASELINE_S apart or more.
    """

    def __init__(self, host_s: float) -> None:
        self._anchor_s, self._drift = host_s, 0.0

    def anchor(self, host_s: float, device_s: float) -> None:
        """Begin to count device time at this moment. device_s: device seconds since the anchor before."""
        if device_s >= LEAST_BASELINE_S:
            self._drift = (host_s - self._anchor_s) / device_s - 1
        self._anchor_s = host_s

    def host_s(self, device_s: float) -> float:
        """Return the host's time `device_s` device seconds after the last anchor."""
        return self._anchor_s + device_s * (1 + self._drift)


class CudaStream:
    """Work is queued in the caller's turn and runs later; marks are events."""

    def __init__(self, device: torch.device, priority: int) -> None:
        self.cuda: torch.cuda.Stream | None = torch.cuda.Stream(device, priority)
        self._lock = FairLock()
        self._origin, host_s = self._mark_of_now()
        self._clock = DeviceClock(host_s)

    def anchor(self) -> None:
        origin, host_s = self._mark_of_now()
        self._clock.anchor(host_s, self._origin.elapsed_time(origin) / 1e3)
        self._origin = origin

    def _mark_of_now(self) -> tuple[torch.cuda.Event, float]:
        """A mark and the host's time of it: of several, the one that the host was quickest to see."""
        tries = []
        with torch.cuda.stream(self.cuda):
            for _ in range(ANCHOR_TRIES):
                before_s = time.perf_counter()
                mark = self.mark()
                mark.synchronize()
                after_s = time.perf_counter()
                tries.append((after_s - before_s, (before_s + after_s) / 2, mark))
        _, host_s, mark = min(tries, key=lambda each: each[0])
        return mark, host_s

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock, torch.cuda.stream(self.cuda):
            yield

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self.cuda)
        return event

    def times(self, marks: Sequence[torch.cuda.Event]) -> list[float]:
        marks[-1].synchronize()
        return [self._clock.host_s(self._origin.elapsed_time(mark) / 1e3) for mark in marks]


def timed(stream: Stream, ready: Callable[[], Sequence[Callable[[], Found]]]) -> tuple[list[Found], list[float]]:
    """Make calls in a turn of the stream. ready: does what the host can do beforehand, and returns the calls.

    Returns what each call returned, and the seconds on the host clock before the first call and after each.
    """
    with stream.turn():
        calls = ready()
        found, marks = [], [stream.mark()]
        for call in calls:
            found.append(call())
            marks.append(stream.mark())
    return found, stream.times(marks)


def make_stream(device: torch.device, priority: int = 0) -> Stream:
    return HostStream() if device.type == "cpu" else CudaStream(device, priority)
