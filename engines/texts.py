"""Parse whole numbers and ranges, as written on command lines and in configurations."""

from __future__ import annotations

import re

_WHOLE = re.compile(r"\d{1,18}")
_RANGE = re.compile(r"(\d{1,18})-(\d{1,18})")


def whole_in(text: str) -> int | None:
    """Return 4 for "4", and None for text that is not a whole number."""
    return int(text) if _WHOLE.fullmatch(text) else None


def range_in(text: str, least: int = 1) -> tuple[int, int] | None:
    """Return (2, 8) for "2-8", and None unless the text is a range with `least` <= low <= high."""
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    low, high = map(int, match.groups())
    return (low, high) if least <= low <= high else None
