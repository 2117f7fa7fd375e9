"""Count the requests in the system over time, independently of the scheduler and the record."""

from __future__ import annotations

import math

from engines.policy.request_state import RequestState


class Population:
    """Count requests as they enter and leave, to check the count against their latencies.

    here: how many there are now. request_seconds: their number, integrated over time.
    """

    def __init__(self) -> None:
        self.here = 0
        self.request_seconds = 0.0
        self._since_s = 0.0
        self._latencies_s = 0.0

    def enter(self, now: float) -> None:
        self._integrate(now)
        self.here += 1

    def leave(self, now: float, state: RequestState) -> None:
        self._integrate(now)
        self.here -= 1
        assert state.finish_s is not None
        self._latencies_s += state.finish_s - state.arrival_s

    def _integrate(self, now: float) -> None:
        self.request_seconds += self.here * (now - self._since_s)
        self._since_s = now

    def check_littles_law(self) -> None:
        """Check Little's law, L = lambda W, over the whole run (Little, Operations Research 9(3), 1961).

        The number of requests in the system, integrated over time, must equal the sum of the latencies. Raises
        AssertionError.
        """
        if not math.isclose(self.request_seconds, self._latencies_s, rel_tol=1e-9, abs_tol=1e-9):
            raise AssertionError(
                f"Little's law fails: {self.request_seconds} request seconds in the system, "
                f"{self._latencies_s} s of latency"
            )
