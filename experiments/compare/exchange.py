"""Costs with some causes as a live run measured them and the others as a simulation modelled them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from calibrate.contention import RunningSegment
from engines.policy.architecture import Segment, Step
from engines.policy.captured_sizes import CapturedSizes, CapturePlan
from engines.policy.segment_shape import SegmentShape
from experiments.compare.measured import Measured, shape_size
from sim.cost_protocols import Contention, Costs, SegmentCost

SOLO, PADDING, HOST, CONTENTION, BATCHES = "solo durations", "padding", "host time", "contention", "different batches"
CAUSES = (SOLO, PADDING, HOST, CONTENTION, BATCHES)
LEAST_RATE = 1e-3


class Player(NamedTuple):
    """What can be exchanged: a cause, for one kind of segment ("" for the host)."""

    cause: str
    segment: str = ""


class ExchangedCosts:
    """Costs in which the causes `measured_of` come from a live run. The others are those of `modelled`.

    plans: what the engine of the live run captured, if the simulation padded otherwise; this object then pads itself,
    segment by segment.
    """

    def __init__(
        self, modelled: Costs, measured: Measured, measured_of: Collection[Player], plans: Sequence[CapturePlan] = ()
    ) -> None:
        self._modelled, self._measured, self._plans = modelled, measured, plans
        self._solo = {Segment(one.segment) for one in measured_of if one.cause == SOLO}
        self._padded = {Segment(one.segment) for one in measured_of if one.cause == PADDING}
        self._contended = {Segment(one.segment) for one in measured_of if one.cause == CONTENTION}
        self._host: Costs = measured.costs if Player(HOST) in measured_of else modelled
        self.captured: CapturedSizes | None = None if plans else modelled.captured
        self.contention: Contention = self

    def cost(self, shape: SegmentShape, quantile: float | None) -> SegmentCost:
        if shape.segment in self._padded:
            shape = padded(shape, self._plans)
        cost = self._modelled.cost(shape, quantile)
        if shape.segment not in self._solo:
            return cost
        factor = self._measured.solo_factor(shape if not self._plans else padded(shape, self._plans))
        return SegmentCost(cost.duration_s * factor, cost.kernel_ms)

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        return self._host.host_s(step, batch_size, back_to_back, beside)

    def rates(self, running: Sequence[RunningSegment]) -> list[float]:
        modelled = self._modelled.contention.rates(running)
        own = {i for i, one in enumerate(running) if one.segment in self._contended}
        if not own or len(running) < 2:
            return modelled
        fitted = self._measured.costs.contention.rates(running)
        return [
            min(1.0, max(LEAST_RATE, fitted[i] * self._measured.rate_factor(i, running))) if i in own else rate
            for i, rate in enumerate(modelled)
        ]

    def describe(self) -> dict[str, Any]:
        return self._modelled.describe()


def padded(shape: SegmentShape, plans: Sequence[CapturePlan]) -> SegmentShape:
    """Return the smallest captured shape that runs this one, of any stream."""
    limit = {Segment.DRAFT: "draft_batch", Segment.VERIFY: "verify_batch"}.get(shape.segment, "tokens")
    found = [plan.padded(shape) for plan in plans if getattr(plan, limit) >= shape_size(shape)]
    return min(found, key=lambda one: (one.batch_size, one.tokens), default=shape)
