"""Read files that users give, or raise an InputError that names the file and the remedy. Needs no torch.

Only regular files of a sensible size are read: reading a device may never end, and a pipe blocks.
"""

from __future__ import annotations

import math
import stat
import tomllib
from pathlib import Path
from typing import Any

from engines.errors import MOST_WHOLE, InputError

MOST_SETTINGS_BYTES = 4 << 20  # of a TOML file: a configuration of thousands of loads has a tenth of that
MOST_DEPTH = 32  # of nested tables and lists
REPAIR = "repair the file"


def read_bytes(field: str, path: Path, most: int, remedy: str = "give another file") -> bytes:
    """Return the contents of a file, without a byte order mark.

    Raises InputError if it is missing, cannot be read, is not a regular file or has more than `most` bytes.
    """
    require_file(field, path, most, remedy)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(field, str(path), f"cannot read the file ({error.strerror}); {remedy}") from error
    if len(content) > most:  # files that report no size, or that grow
        raise _too_large(field, path, most)
    return content.removeprefix(b"\xef\xbb\xbf")


def require_file(field: str, path: Path, most: int | None = None, remedy: str = "give another file") -> None:
    """Raise InputError unless the path is, or links to, a regular file (of at most `most` bytes, if given)."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise InputError(field, str(path), f"cannot read the file ({reason}); {remedy}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
        raise InputError(field, str(path), f"cannot read the file (it is {kind}); {remedy}")
    if most is not None and found.st_size > most:
        raise _too_large(field, path, most)


def read_toml(field: str, path: Path, remedy: str = REPAIR) -> dict[str, Any]:
    """Read a TOML file as plain values.

    Raises InputError as read_bytes does, for invalid TOML, for numbers that need more than 64 bits, and for tables
    and lists nested more than MOST_DEPTH deep.
    """
    content = read_bytes(field, path, MOST_SETTINGS_BYTES)
    try:
        values = tomllib.loads(content.decode(), parse_float=_number)
    except RecursionError as error:
        raise _too_deep(field, path, remedy) from error
    except ValueError as error:  # also from Python's conversions: invalid dates, numbers of thousands of digits
        raise InputError(field, str(path), f"not valid TOML ({error}); {remedy}") from error
    _check_values(field, path, values, remedy)
    return values


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number) and "inf" not in text:
        raise ValueError(f"a number that begins with {text[:20]} is too large")
    return number


def _check_values(field: str, path: Path, values: dict[str, Any], remedy: str) -> None:
    """Check that numbers fit 64 bits, as TOML and tables require, and that nothing is nested too deeply."""
    level: list[tuple[str, Any]] = list(values.items())
    for _ in range(MOST_DEPTH):
        deeper: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, dict):
                deeper += [(f"{name}.{key}", item) for key, item in value.items()]
            elif isinstance(value, list):
                deeper += [(name, item) for item in value]
            elif isinstance(value, int) and not -MOST_WHOLE <= value <= MOST_WHOLE:
                raise InputError(f"{field} {path} {name}", value, f"the number needs more than 64 bits; {remedy}")
        if not deeper:
            return
        level = deeper
    raise _too_deep(field, path, remedy)


def _too_deep(field: str, path: Path, remedy: str) -> InputError:
    return InputError(field, str(path), f"its tables are nested more than {MOST_DEPTH} deep; {remedy}")


def _too_large(field: str, path: Path, most: int) -> InputError:
    return InputError(field, str(path), f"the file has more than {most >> 20} MiB; give a smaller one")
