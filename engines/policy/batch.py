"""Batches that the scheduler gives to workers, and the outcomes that they report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from engines.policy.architecture import Lane, Step
from engines.policy.request import Emission, Settlement
from engines.policy.request_state import RequestState
from engines.policy.segment_shape import SegmentShape


class Wait(NamedTuple):
    """How long a request waited before a step, in seconds by cause. The parts add up to the whole wait.

    admission_s: no slot was free (before prefill). permit_s: a worker was free, but no permit was.
    queue_s: the rest, while the lane's workers were busy.
    """

    admission_s: float
    queue_s: float
    permit_s: float


@dataclass(slots=True)
class Batch:
    """A batch that a worker of a lane has started.

    back_to_back: the worker starts this batch when its last one was completed, so it need not be woken.
    draft_lengths: k per member (0 for prefill). waits: what each member waited for before this batch.
    shapes: the shapes of its segments, in order.
    settlements: filled in by Scheduler.complete, one per member. None for members that failed, were cancelled or
    had nothing to settle (draft).
    """

    id: int
    lane: Lane
    worker: int
    step: Step
    members: list[RequestState]
    dispatched_s: float
    hybrid: bool = False
    back_to_back: bool = False
    draft_lengths: list[int] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    settlements: list[Settlement | None] = field(default_factory=list)
    shapes: tuple[SegmentShape, ...] = ()

    @property
    def host_step(self) -> Step:
        """The step whose host time this batch takes: draft+verify without drafts is a verify."""
        return Step.VERIFY if self.step is Step.DRAFT_VERIFY and not any(self.draft_lengths) else self.step

    @property
    def slots(self) -> list[int]:
        """Slot numbers of the members."""
        return [member.slot for member in self.members if member.slot is not None]


Outcome = Emission | Exception | None
"""Result of a step for one member: an Emission (prefill, verify), None (draft) or the exception it raised."""
