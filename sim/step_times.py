"""What a load-adaptive draft length weighs: the mean seconds of an architecture's steps, from measured costs.

The live engine and the simulator give their scheduler the same object, made of the same profile.
"""

from __future__ import annotations

from collections.abc import Mapping

from calibrate.contention import RunningSegment
from engines.policy.architecture import Architecture, Stage, Step
from engines.policy.captured_sizes import CapturePlan
from engines.policy.draft_length import LoadAdaptiveDraftLength
from engines.policy.segment_shape import SegmentShape, catch_up_passes
from sim.costs import Costs

CONTEXT_STEP = 32  # contexts are rounded to it: times change little within, and are looked up for every batch


class MeasuredStepTimes:
    """The times of an architecture's steps; engines.policy.load_adaptive.StepTimes explains the methods.

    plans: what each stream captures, since a batch takes as long as the captured size that runs it. Raises InputError
    if the draft lengths that may be chosen were not measured.
    """

    def __init__(self, costs: Costs, architecture: Architecture, plans: Mapping[int, CapturePlan]) -> None:
        self._costs = costs
        draft_lane, step = architecture.lane_for(Stage.DRAFT)
        verify_lane = draft_lane if step is Step.DRAFT_VERIFY else architecture.lane_for(Stage.VERIFY)[0]
        self._draft_plan, self._verify_plan = (plans.get(lane.stream) for lane in (draft_lane, verify_lane))
        self._known: dict[tuple[int, int, int, bool], float] = {}
        self._host_s: dict[tuple[int, bool, bool], float] = {}
        self._side_by_side: dict[tuple[int, int, int, int], tuple[float, float]] = {}
        for k in (architecture.draft_length.minimum, architecture.draft_length.maximum):
            self.verify_s(1, k, 2.0)
            if k:
                self.draft_s(1, k, 2.0)

    def draft_s(self, batch: int, k: int, context_tokens: float) -> float:
        return self._segment_s(batch, k, context_tokens, draft=True)

    def verify_s(self, batch: int, k: int, context_tokens: float) -> float:
        return self._segment_s(batch, k, context_tokens, draft=False)

    def host_s(self, batch: int, drafts: bool, verifies: bool) -> float:
        key = batch, drafts, verifies
        found = self._host_s.get(key)
        if found is None:
            step = Step.DRAFT if not verifies else Step.DRAFT_VERIFY if drafts else Step.VERIFY
            found = self._host_s[key] = sum(self._costs.host_s(step, batch, True, 0))
        return found

    def side_by_side(self, drafting: int, verifying: int, k: int, context_tokens: float) -> tuple[float, float]:
        key = drafting, verifying, k, round(context_tokens / CONTEXT_STEP)
        found = self._side_by_side.get(key)
        if found is None:
            draft, verify = (
                self._shape(drafting, k, key[3], draft=True),
                self._shape(verifying, k, key[3], draft=False),
            )
            running = [
                RunningSegment(shape.segment, shape.rows, self._costs.cost(shape, None).kernel_ms)
                for shape in (draft, verify)
            ]
            draft_rate, verify_rate = self._costs.contention.rates(running)
            found = self._side_by_side[key] = draft_rate, verify_rate
        return found

    def catch_up_s(self, tokens: int) -> float:
        plan, passes = self._draft_plan, catch_up_passes(tokens)
        if plan is not None:
            passes = [plan.padded_pass(each) for each in passes]
        return sum(self._costs.cost(each, None).duration_s for each in passes)

    def _segment_s(self, batch: int, k: int, context_tokens: float, draft: bool) -> float:
        """Return the seconds on the device of a draft or a verify."""
        step = round(context_tokens / CONTEXT_STEP)
        key = batch, k, step, draft
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._costs.cost(self._shape(batch, k, step, draft), None).duration_s
        return found

    def _shape(self, batch: int, k: int, step: int, draft: bool) -> SegmentShape:
        """step: the mean context, in CONTEXT_STEP tokens."""
        shape = (SegmentShape.draft if draft else SegmentShape.verify)(batch, k, max(2, step * CONTEXT_STEP))
        plan = self._draft_plan if draft else self._verify_plan
        return shape if plan is None else plan.padded(shape)


def step_times(
    costs: Costs, architecture: Architecture, plans: Mapping[int, CapturePlan]
) -> MeasuredStepTimes | None:
    """Return the times that an architecture's draft length weighs, or None if it weighs none. Raises InputError."""
    weighs = isinstance(architecture.draft_length, LoadAdaptiveDraftLength)
    return MeasuredStepTimes(costs, architecture, plans) if weighs else None
