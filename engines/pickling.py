"""Pickling by the arguments of the constructor. Compiled classes need it: none is made without calling that."""

from __future__ import annotations

import dataclasses
from typing import Any


def by_fields(value: Any) -> tuple[Any, ...]:
    """Return what `__reduce__` of a dataclass should: how to make an equal one."""
    return type(value), tuple([getattr(value, field.name) for field in dataclasses.fields(value) if field.init])
