"""Costs of another draft model: what the draft model runs takes a given multiple of the measured time."""

from __future__ import annotations

from typing import Any

from engines.policy.architecture import Step
from engines.policy.segment_shape import SegmentShape
from sim.cost_protocols import Costs, SegmentCost


class _Scaled:
    def __init__(self, costs: Costs, factor: float) -> None:
        self._costs, self._factor = costs, factor
        self.contention, self.captured = costs.contention, costs.captured

    def cost(self, shape: SegmentShape, quantile: float | None) -> SegmentCost:
        duration_s, kernel_ms = self._costs.cost(shape, quantile)
        if not shape.segment.of_draft_model:
            return SegmentCost(duration_s, kernel_ms)
        return SegmentCost(duration_s * self._factor, kernel_ms * self._factor)

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        return self._costs.host_s(step, batch_size, back_to_back, beside)

    def describe(self) -> dict[str, Any]:
        return {**self._costs.describe(), "draft_cost": self._factor}


def with_draft_cost(costs: Costs, factor: float) -> Costs:
    """Return the costs with each kernel of the draft model `factor` times as long. 1 leaves them as they are."""
    return costs if factor == 1 else _Scaled(costs, factor)
