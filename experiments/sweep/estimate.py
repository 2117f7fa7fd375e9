"""How long a sweep still takes, from what is done."""

from __future__ import annotations

import time

from rich.console import Console

REPORT_S = 30.0
"""How often a line is printed if standard error is not a terminal, seconds."""


class Estimate:
    """Estimate the time left from the work done since the first result: until then, workers only start.

    Simulations run in random order, so what is done is a fair sample of the rest.
    """

    def __init__(self, total: float) -> None:
        self._total = total
        self._done = self._first = 0.0
        self._first_s: float | None = None
        self._reported_s = time.monotonic()

    def done(self, work: float) -> tuple[int, int]:
        """Add work. Returns the work done and in all, for a progress bar."""
        self._done += work
        if self._first_s is None:
            self._first_s, self._first = time.monotonic(), self._done
        return round(self._done), round(self._total)

    def left_s(self) -> float | None:
        """Return the seconds left, or None while nothing is known."""
        if self._first_s is None or self._done == self._first:
            return None
        speed = (self._done - self._first) / max(time.monotonic() - self._first_s, 1e-9)
        return (self._total - self._done) / speed

    def report(self, console: Console) -> None:
        """Print a line now and then, if there is no terminal for a bar."""
        now, left_s = time.monotonic(), self.left_s()
        if console.is_terminal or left_s is None or now - self._reported_s < REPORT_S:
            return
        self._reported_s = now
        left = f"{left_s:.0f} s" if left_s < 120 else f"{left_s / 60:.0f} min"
        console.print(f"{self._done / self._total:.0%} done, about {left} left")
