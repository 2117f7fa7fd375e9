"""Costs with a part of the model switched off, to see what it is worth. Never a default."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from calibrate.contention import NoContention
from calibrate.measured_contention import MeasuredContention
from engines.errors import InputError
from engines.policy.architecture import Segment, Step
from engines.policy.segment_shape import SegmentShape
from sim.cost_protocols import Contention, MeasuredCosts, SegmentCost

PARTS = ("contention", "contention-differences", "host", "host-growth", "padding")


class CostsWithout:
    """The costs without some of PARTS.

    contention: segments do not slow one another. contention-differences: they do by the fitted law alone, without its
    differences to what was measured. host: batches take no time on the host. host-growth: they take that of one
    request, whatever their size and what runs beside them. padding: they take the time of their own size, not of the
    captured size that runs them.
    """

    def __init__(self, costs: MeasuredCosts, parts: Collection[str]) -> None:
        self.extrapolate = costs.extrapolate
        self._costs, self._parts = costs, check_parts_of_model(parts)
        self.contention = _contention(costs.contention, parts)
        self.captured = None if "padding" in parts else costs.captured

    def cost(self, shape: SegmentShape, quantile: float | None) -> SegmentCost:
        return self._costs.cost(shape, quantile)

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        if "host" in self._parts:
            return 0.0, 0.0
        size, others = (1, 0) if "host-growth" in self._parts else (batch_size, beside)
        return self._costs.host_s(step, size, back_to_back, others)

    def covered(self, segment: Segment) -> dict[str, tuple[float, float]]:
        return self._costs.covered(segment)

    def beyond(self, shape: SegmentShape) -> tuple[str, ...]:
        return self._costs.beyond(shape)

    def describe(self) -> dict[str, Any]:
        changed = {"contention": "none"} if "contention" in self._parts else {}
        return {**self._costs.describe(), **changed, "without": list(self._parts)}


def _contention(contention: Contention, parts: Collection[str]) -> Contention:
    if "contention" in parts:
        return NoContention()
    if "contention-differences" in parts and isinstance(contention, MeasuredContention):
        return contention.law
    return contention


def check_parts_of_model(parts: Collection[str]) -> tuple[str, ...]:
    """Return the parts, each once and in order. Raises InputError for a name that is not in PARTS."""
    for part in parts:
        if part not in PARTS:
            raise InputError("without", part, f"use {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in parts)
