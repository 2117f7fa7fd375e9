"""Parse whole numbers and ranges, as written on command lines and in configurations."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"\d{1,18}")
_RANGE = re.compile(r"(\d{1,18})-(\d{1,18})")


def whole_in(text: str) -> int | None:
    """Return 4 for "4", and None for text that is not a whole number."""
    return int(text) if _WHOLE.fullmatch(text) else None


def range_in(text: str) -> tuple[int, int] | None:
    """Return (2, 8) for "2-8", and None unless the text is a range with 1 <= low <= high."""
    match = _RANGE.fullmatch(text)
    low, high = map(int, match.groups()) if match else (0, 0)
    return (low, high) if 1 <= low <= high else None
