"""What the simulator asks of a cost model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from calibrate.contention import RunningSegment
from engines.policy.architecture import Segment, Step
from engines.policy.captured_sizes import CapturedSizes
from engines.policy.segment_shape import SegmentShape

DIMENSIONS = ("draft_length", "batch_size", "tokens", "context_tokens")
"""What a cost depends on, `tokens` for prefill and `context_tokens` for draft and verify."""


class SegmentCost(NamedTuple):
    """duration_s: on the device, alone. kernel_ms: mean kernel duration."""

    duration_s: float
    kernel_ms: float


class Contention(Protocol):
    """How segments that run together slow one another; calibrate.contention has the measured one."""

    def rates(self, running: Sequence[RunningSegment]) -> list[float]: ...


class Costs(Protocol):
    """What the simulator asks: durations, and how segments that run together slow one another."""

    contention: Contention
    captured: CapturedSizes | None
    """What the engine captures and pads to; None where it pads nothing."""

    def cost(self, shape: SegmentShape, quantile: float | None) -> SegmentCost:
        """Return the cost of one execution. quantile: where in the measured spread it falls; None is the mean."""

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        """Return the seconds that a batch spends outside the device, before and after it. back_to_back: its worker
        comes straight from another batch. beside: other batches that the host works on when this one is
        dispatched."""

    def describe(self) -> dict[str, object]:
        """Plain values for run.toml."""


@runtime_checkable
class MeasuredCosts(Costs, Protocol):
    """Costs that know for which shapes they were measured. The others are refused, or extrapolated."""

    @property
    def extrapolate(self) -> bool:
        """Whether they are extrapolated."""

    def covered(self, segment: Segment) -> dict[str, tuple[float, float]]:
        """Return the least and the most that were measured of each of its DIMENSIONS."""

    def beyond(self, shape: SegmentShape) -> tuple[str, ...]:
        """Return in which of these a shape lies outside."""
