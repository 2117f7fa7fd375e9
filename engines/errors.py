"""The one error that bad input gets, whichever floor notices it."""

from __future__ import annotations

import math
from typing import Any


class InputError(ValueError):
    """Input that cannot be used: names the field, the offending value and the remedy.

    The command line prints it as one line and exits with code 2.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        # All three go into args, so that copies made of them (by pickle, by SimPy) are whole.
        super().__init__(field, value, remedy)
        self.field, self.value, self.remedy = field, value, remedy

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r}: {self.remedy}"


def require_whole(field: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises InputError unless the value is a whole number of at least `least` (true and false are none) and, where
    `most` is given, at most that."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(field, value, f"use a whole number of at least {least}")
    if most is not None and value > most:
        raise InputError(field, value, f"use {most} or fewer")


def require_positive(field: str, value: Any) -> None:
    """Raises InputError unless the value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise InputError(field, value, "use a number above 0")
