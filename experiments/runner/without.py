"""Costs with a part of the model switched off, to see what it is worth. Never a default."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from calibrate.contention import NoContention
from engines.errors import InputError
from engines.policy.architecture import Segment, Step
from engines.policy.segment_shape import SegmentShape
from sim.costs import MeasuredCosts, SegmentCost

PARTS = ("contention", "host", "padding")


class CostsWithout:
    """The costs without some of PARTS: segments do not slow one another, batches take no time on the host, or they
    take the time of their own size instead of the captured size that runs them."""

    def __init__(self, costs: MeasuredCosts, parts: Collection[str]) -> None:
        self.extrapolate = costs.extrapolate
        self._costs, self._parts = costs, check_parts_of_model(parts)
        self.contention = NoContention() if "contention" in parts else costs.contention
        self.captured = None if "padding" in parts else costs.captured

    def cost(self, shape: SegmentShape, quantile: float | None) -> SegmentCost:
        return self._costs.cost(shape, quantile)

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        return (0.0, 0.0) if "host" in self._parts else self._costs.host_s(step, batch_size, back_to_back, beside)

    def covered(self, segment: Segment) -> dict[str, tuple[float, float]]:
        return self._costs.covered(segment)

    def beyond(self, shape: SegmentShape) -> tuple[str, ...]:
        return self._costs.beyond(shape)

    def describe(self) -> dict[str, Any]:
        changed = {"contention": "none"} if "contention" in self._parts else {}
        return {**self._costs.describe(), **changed, "without": list(self._parts)}


def check_parts_of_model(parts: Collection[str]) -> tuple[str, ...]:
    """Return the parts, each once and in order. Raises InputError for a name that is not in PARTS."""
    for part in parts:
        if part not in PARTS:
            raise InputError("without", part, f"use {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts)
