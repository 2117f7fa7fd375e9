"""Whole numbers written as text, as command lines and configurations have them."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"\d{1,18}")
_RANGE = re.compile(r"(\d{1,18})-(\d{1,18})")


def whole_in(text: str) -> int | None:
    """ "4" -> 4; None for anything that is not a whole number."""
    return int(text) if _WHOLE.fullmatch(text) else None


def range_in(text: str) -> tuple[int, int] | None:
    """ "2-8" -> (2, 8); None for anything that is not a rising range from at least 1."""
    match = _RANGE.fullmatch(text)
    low, high = map(int, match.groups()) if match else (0, 0)
    return (low, high) if 1 <= low <= high else None
