"""The errors that every layer raises for bad input and full queues, and checks that raise them."""

from __future__ import annotations

import sys
from typing import Any

LONGEST_NAME = 100  # characters, and at most twice as many bytes: a name plus suffixes still has to fit a folder name
MOST_WHOLE = 2**63 - 1  # fits 64 bits, as TOML files and tables need
MOST_SHOWN = 200  # characters of a value shown in a message


class InputError(ValueError):
    """Input that cannot be used. The message names the field, the offending value and the remedy.

    The command line prints it as one line and exits with code 2.
    """

    def __init__(self, field: str, value: object, remedy: str) -> None:
        # All three go into args, so that copies made from them (by pickle or SimPy) are complete.
        super().__init__(field, value, remedy)
        self.field, self.value, self.remedy = field, value, remedy

    def __str__(self) -> str:
        return f"{_printable(self.field)} = {_shown(self.value)}: {_printable(self.remedy)}"


class QueueFullError(RuntimeError):
    """Raised for a request that was not accepted because `queue_limit` requests already wait for a slot."""


def _shown(value: object) -> str:
    """Return the repr of a value on one line, shortened if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, deeply nested values
        return f"a {type(value).__name__} too large to show"
    text = _printable(text)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _printable(text: str) -> str:
    """Put text on one line and replace control characters, which a terminal would act on."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def require_whole(field: str, value: Any, least: int, most: int = MOST_WHOLE) -> None:
    """Raise InputError unless the value is a whole number from `least` to `most`. Booleans do not count."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(field, value, f"use a whole number of at least {least}")
    if value > most:
        raise InputError(field, value, f"use {most} or fewer")


def require_positive(field: str, value: Any) -> None:
    """Raise InputError unless the value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise InputError(field, value, "use a number above 0")


def require_at_least(field: str, value: Any, least: float) -> None:
    """Raise InputError unless the value is a finite number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= sys.float_info.max:
        raise InputError(field, value, f"use a number of at least {least:g}")


def require_name(field: str, value: Any) -> None:
    """Raise InputError unless the value is text that can be used as a name and within a file name.

    It must be printable, contain no slashes or backslashes, not begin with a dot or a dash, and not be too long.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(field, value, "give a name, as text")
    if not value.isprintable() or "/" in value or "\\" in value:
        other = "".join("-" if c in "/\\" or not c.isprintable() else c for c in value)
        other = other.lstrip(".-")[:LONGEST_NAME] or "another"
        raise InputError(
            field, value, f"a name cannot have slashes, backslashes or control characters; use {other!r}"
        )
    if value[0] in ".-":
        raise InputError(field, value, "a name cannot begin with a dot or a dash; use another")
    if len(value) > LONGEST_NAME or len(value.encode()) > 2 * LONGEST_NAME:
        shown = f"{value[:20]}..."
        raise InputError(field, shown, f"a name can have at most {LONGEST_NAME} characters; use a shorter one")
