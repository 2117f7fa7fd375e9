"""The axes of a sweep: which values its settings take, and how they are combined.

Axes of a grid take every combination, those of a zip go together, and random ones are drawn.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from itertools import chain, product
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from engines.errors import InputError
from engines.storage.validation import Count, Settings, Whole

MOST_CELLS = 100_000  # each takes about 10 kB of memory
NEAR = (1 / 8, 1 / 32)
"""How far the neighbours of a value in a range are, as fractions of the range."""


def _not_empty(axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
    for name, values in axes.items():
        if not values:
            raise InputError(name, values, "list at least one value")
    return axes


def _same_lengths(axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
    counts = {name: len(values) for name, values in axes.items()}
    if len(set(counts.values())) > 1:
        raise InputError(", ".join(counts), list(counts.values()), "axes of a zip go together; list as many values")
    return axes


Grid = Annotated[dict[str, list[Any]], AfterValidator(_not_empty)]
Zip = Annotated[dict[str, list[Any]], AfterValidator(_not_empty), AfterValidator(_same_lengths)]
Bounds = Annotated[list[int | float], Field(min_length=2, max_length=2)]


class Draw(Settings):
    """How a random axis is drawn: `uniform` or `log_uniform` within [low, high], or by `choice` from a list.

    If both bounds are whole numbers, so is every value, and both bounds can be drawn.
    """

    uniform: Bounds | None = None
    log_uniform: Bounds | None = None
    choice: Annotated[list[Any], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Draw:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise InputError("draw", ", ".join(given) or None, "give one of uniform, log_uniform and choice")
        for name, bounds in (("uniform", self.uniform), ("log_uniform", self.log_uniform)):
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise InputError(name, bounds, "need low <= high")
            if bounds is not None and name == "log_uniform" and bounds[0] <= 0:
                raise InputError(name, bounds, "a logarithm needs numbers above 0")
        return self

    def values(self, uniform: np.ndarray) -> list[Any]:
        """Return one value for each uniform number in [0, 1)."""
        if self.choice is not None:
            return [self.choice[int(number * len(self.choice))] for number in uniform]
        bounds = self.uniform or self.log_uniform
        assert bounds is not None
        low, high = bounds
        whole = isinstance(low, int) and isinstance(high, int)
        if self.uniform is not None:
            drawn = low + uniform * (high - low + whole)
            return np.floor(drawn).astype(int).tolist() if whole else drawn.tolist()
        drawn = np.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
        return np.rint(drawn).astype(int).tolist() if whole else drawn.tolist()

    @property
    def ordered(self) -> bool:
        """Whether the values are numbers in order."""
        if self.choice is None:
            return True
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.choice)
        return numbers and self.choice == sorted(set(self.choice))

    def neighbours(self, value: Any) -> list[Any]:
        """Return values close to this one: for choices, the next ones if they are ordered, and all others if not.

        In a range, they are NEAR of its length away, and at least 1 if it is of whole numbers.
        """
        if self.choice is not None:
            if not self.ordered:
                return [other for other in self.choice if other != value]
            place = self.choice.index(value)
            return [self.choice[i] for i in (place - 1, place + 1) if 0 <= i < len(self.choice)]
        bounds = self.uniform or self.log_uniform
        assert bounds is not None
        low, high = bounds
        there, back = (math.log, math.exp) if self.log_uniform is not None else (float, float)
        step, found = there(high) - there(low), []
        for part in NEAR:
            for sign in (-1, 1):
                other: float = min(max(back(there(value) + sign * part * step), low), high)
                if isinstance(low, int) and isinstance(high, int):
                    other = round(other) if round(other) != value else min(max(value + sign, low), high)
                found.append(other)
        return [other for other in dict.fromkeys(found) if other != value]


class Random(Settings):
    """Axes that are drawn together, `count` times. Every other setting is the Draw of one axis.

    Each axis has its own stream of random numbers, keyed by (seed, name): another axis or a larger count never
    changes what is drawn already.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Draw]

    count: Count
    seed: Whole = 0

    def axes(self) -> dict[str, list[Any]]:
        """Return the values of each axis, `count` each."""
        if self.count > MOST_CELLS:
            raise InputError("random.count", self.count, f"use {MOST_CELLS} or fewer")
        return {
            name: draw.values(np.random.default_rng([self.seed, zlib.crc32(name.encode())]).random(self.count))
            for name, draw in self.__pydantic_extra__.items()
        }


def combined(
    grid: Mapping[str, Sequence[Any]], together: Sequence[Mapping[str, Sequence[Any]]]
) -> list[dict[str, Any]]:
    """Return the settings of every cell: all combinations of the grid's axes and of each group that goes together.

    The first axis changes slowest. Raises InputError if an axis is given twice, or for more than MOST_CELLS cells.
    """
    names = [*grid, *chain.from_iterable(together)]
    for name in names:
        if names.count(name) > 1:
            raise InputError(name, "given twice", "give each axis once, in the grid, a zip or the random axes")
    axes = [[{name: value} for value in values] for name, values in grid.items()]
    for group in together:
        rows = zip(*group.values(), strict=True)
        axes.append([dict(zip(group, row, strict=True)) for row in rows])
    count = math.prod(map(len, axes))
    if count > MOST_CELLS:
        raise InputError("cells", count, f"a sweep can have {MOST_CELLS} at most; use fewer values, or random axes")
    return [{name: value for part in parts for name, value in part.items()} for parts in product(*axes)]
