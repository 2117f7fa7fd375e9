"""Streams run work in order, first come, first served: a CUDA stream, or its equivalent on a CPU."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

Found = TypeVar("Found")
LEAST_BASELINE_S = 1.0  # shortest time between two anchors from which the drift is computed
ANCHOR_TRIES = 20


class Stream(Protocol):
    """What a lane worker needs from a stream. cuda: the CUDA stream; None on a CPU."""

    cuda: torch.cuda.Stream | None

    def turn(self) -> Any:
        """Return a context in which only this thread may give work to the stream, first come, first served."""

    def anchor(self) -> None:
        """Relate the stream's clock to the host's again. The stream must be idle."""

    def mark(self) -> Any:
        """Return a mark of the current point in the stream."""

    def times(self, marks: Sequence[Any]) -> list[float]:
        """Wait for the marks and return when the stream passed them, in seconds on the clock of time.perf_counter."""


class FairLock:
    """A lock that serves waiting threads first come, first served."""

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
    """A stream on the CPU: work runs in the calling thread during its turn."""

    cuda: torch.cuda.Stream | None = None

    def __init__(self) -> None:
        self._lock = FairLock()

    def turn(self) -> FairLock:
        return self._lock

    def anchor(self) -> None:
        """Do nothing, since the stream uses the host's clock."""

    def mark(self) -> float:
        return time.perf_counter()

    def times(self, marks: Sequence[float]) -> list[float]:
        return list(marks)


class DeviceClock:
    """Converts device time to host time. The clocks drift apart (by about 25 microseconds per second on an H100).

    The drift is computed from two anchors that are at least LEAST_BASELINE_S apart.
    """

    def __init__(self, host_s: float) -> None:
        self._anchor_s, self._drift = host_s, 0.0

    def anchor(self, host_s: float, device_s: float) -> None:
        """Count device time from this moment. device_s: device seconds since the previous anchor."""
        if device_s >= LEAST_BASELINE_S:
            self._drift = (host_s - self._anchor_s) / device_s - 1
        self._anchor_s = host_s

    def host_s(self, device_s: float) -> float:
        """Return the host time `device_s` device seconds after the last anchor."""
        return self._anchor_s + device_s * (1 + self._drift)


class CudaStream:
    """A CUDA stream: work is queued during the caller's turn and runs later. Marks are events."""

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
        """Return a mark and its host time: of several tries, the one that the host saw fastest."""
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
    """Make calls during one turn of the stream.

    ready: does the work of the host that can be done beforehand, and returns the calls. Returns the result of each
    call, and the host times before the first call and after each call, in seconds.
    """
    with stream.turn():
        calls = ready()
        found, marks = [], [stream.mark()]
        for call in calls:
            found.append(call())
            marks.append(stream.mark())
    return found, stream.times(marks)


def make_stream(device: torch.device, priority: int = 0) -> Stream:
    """Make a stream of a device. priority: CUDA stream priority; negative is more urgent."""
    return HostStream() if device.type == "cpu" else CudaStream(device, priority)
