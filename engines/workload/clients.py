"""The clients of a workload, which submit its requests to a live or simulated engine."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from engines.policy.request import Request
from engines.workload.workload import Workload


class Clients:
    """Submit the requests of a workload when they are due. The engine supplies the time.

    In an open loop, every request is due at its arrival. In a closed loop, each of `concurrency` clients submits a
    request at time 0. When a request ends or is rejected, its client thinks and then submits the next unsent one.
    Requests that are due at the same time are submitted in workload order.

    submit: called with each request. If the request is rejected, it may call `ended` before it returns.
    """

    def __init__(self, workload: Workload, submit: Callable[[Request], object]) -> None:
        self._requests, self._think_s = workload.requests, workload.think_s
        self._submit = submit
        self._submitting = False
        self._ended = 0
        closed = workload.concurrency is not None
        self._sent = min(workload.concurrency or 0, self.total) if closed else self.total
        self._due = [
            (0.0 if closed else request.arrival_s or 0.0, index)
            for index, request in enumerate(self._requests[: self._sent])
        ]  # (seconds, index of the request); sorted, so already a heap

    @property
    def total(self) -> int:
        """Number of requests in the workload."""
        return len(self._requests)

    @property
    def done(self) -> int:
        """Number of requests that have ended or were rejected."""
        return self._ended

    def submit_due(self, now: float) -> float | None:
        """Submit every request that is due. Returns the time at which the next one is due, or None."""
        if self._submitting:  # a request was rejected within submit; the outer call submits its client's next one
            return None
        self._submitting = True
        while self._due and self._due[0][0] <= now:
            self._submit(self._requests[heapq.heappop(self._due)[1]])
        self._submitting = False
        return self._due[0][0] if self._due else None

    def ended(self, now: float) -> float | None:
        """Count a request that has ended or was rejected, and schedule its client's next one.

        Returns the client's think time in seconds, or None if no request is left to submit.
        """
        self._ended += 1
        if self._sent == self.total:
            return None
        index, self._sent = self._sent, self._sent + 1
        think_s = self._think_s[index] if self._think_s else 0.0
        heapq.heappush(self._due, (now + think_s, index))
        return think_s
