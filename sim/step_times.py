"""What a load-adaptive draft length weighs: the mean seconds of an architecture's steps, from measured costs.

The live engine and the simulator give their scheduler the same object, made of the same profile.
"""

from __future__ import annotations

from collections.abc import Mapping

from calibrate.contention import RunningSegment
from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import Architecture, Segment, Stage, Step
from engines.policy.captured_sizes import CapturePlan
from engines.policy.draft_length import DraftLength, LoadAdaptiveDraftLength
from engines.policy.segment_shape import SegmentShape, catch_up_passes
from sim.cost_protocols import Costs


def check_measured(profile: Profile, draft_length: DraftLength) -> None:
    """Raise InputError if a draft length weighs a k outside those that a profile measured.

    Live engines extrapolate batches and contexts, which depend on the load. Draft lengths are known before.
    """
    if not isinstance(draft_length, LoadAdaptiveDraftLength):
        return
    most = draft_length.maximum
    for segment, least in ((Segment.VERIFY, draft_length.minimum), (Segment.DRAFT, max(1, draft_length.minimum))):
        measured = profile.stage_costs.loc[profile.stage_costs["segment"] == segment, "draft_length"]
        low, high = int(measured.min()), int(measured.max())
        if least < low or most > high:
            known = f"{low} to {high}" if low < high else f"{low} only"
            remedy = f"the profile measured {segment} at draft lengths {known}; calibrate from {least} to {most}"
            raise InputError("draft_length", draft_length.label, remedy)


class MeasuredStepTimes:
    """The times of an architecture's steps; engines.policy.load_adaptive.StepTimes explains the methods.

    plans: what each stream captures, since a batch takes as long as the captured size that runs it. Raises InputError
    if the draft lengths that may be chosen were not measured, unless the costs extrapolate.
    """

    def __init__(self, costs: Costs, architecture: Architecture, plans: Mapping[int, CapturePlan]) -> None:
        self._costs = costs
        draft_lane, step = architecture.lane_for(Stage.DRAFT)
        verify_lane = draft_lane if step is Step.DRAFT_VERIFY else architecture.lane_for(Stage.VERIFY)[0]
        self._draft_plan, self._verify_plan = (plans.get(lane.stream) for lane in (draft_lane, verify_lane))
        least, most = architecture.draft_length.minimum, architecture.draft_length.maximum
        for k in (least, max(1, least), most):
            self.verify_s(1, k, 2.0)
            if k:
                self.draft_s(1, k, 2.0)

    def draft_s(self, batch: int, k: int, context_tokens: float) -> float:
        return self._costs.cost(self._shape(batch, k, context_tokens, draft=True), None).duration_s

    def verify_s(self, batch: int, k: int, context_tokens: float) -> float:
        return self._costs.cost(self._shape(batch, k, context_tokens, draft=False), None).duration_s

    def host_s(self, batch: int, drafts: bool, verifies: bool) -> float:
        step = Step.DRAFT if not verifies else Step.DRAFT_VERIFY if drafts else Step.VERIFY
        return sum(self._costs.host_s(step, batch, True, 0))

    def side_by_side(self, drafting: int, verifying: int, k: int, context_tokens: float) -> tuple[float, float]:
        shapes = (
            self._shape(drafting, k, context_tokens, draft=True),
            self._shape(verifying, k, context_tokens, draft=False),
        )
        running = [
            RunningSegment(shape.segment, shape.rows, self._costs.cost(shape, None).kernel_ms) for shape in shapes
        ]
        draft_rate, verify_rate = self._costs.contention.rates(running)
        return draft_rate, verify_rate

    def catch_up_s(self, tokens: int) -> float:
        plan, passes = self._draft_plan, catch_up_passes(tokens)
        if plan is not None:
            passes = [plan.padded_pass(each) for each in passes]
        return sum(self._costs.cost(each, None).duration_s for each in passes)

    def _shape(self, batch: int, k: int, context_tokens: float, draft: bool) -> SegmentShape:
        shape = (SegmentShape.draft if draft else SegmentShape.verify)(batch, k, context_tokens)
        plan = self._draft_plan if draft else self._verify_plan
        return shape if plan is None else plan.padded(shape)


def step_times(
    costs: Costs, architecture: Architecture, plans: Mapping[int, CapturePlan]
) -> MeasuredStepTimes | None:
    """Return the times that an architecture's draft length weighs, or None if it weighs none. Raises InputError."""
    weighs = isinstance(architecture.draft_length, LoadAdaptiveDraftLength)
    return MeasuredStepTimes(costs, architecture, plans) if weighs else None
