"""Sums of floats without rounding error, in any order and in parts."""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum


class ExactSum:
    """A running sum. Its total is what math.fsum gives for all values at once, in memory that does not grow."""

    def __init__(self) -> None:
        self._parts: list[float] = []  # their sum is exact; each is the rounded rest of those before

    def add(self, values: Iterable[float]) -> None:
        """Add finite values."""
        rest = [*self._parts, *values]
        self._parts = []
        while part := fsum(rest):
            self._parts.append(part)
            rest.append(-part)

    @property
    def total(self) -> float:
        """The sum, correctly rounded."""
        return fsum(self._parts)
