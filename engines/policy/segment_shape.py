"""What a segment is given: what its duration depends on, and what calibration, records and the simulator call a
point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from engines.policy.architecture import Segment, Step
from engines.policy.request import RequestState


class SegmentShape(NamedTuple):
    """The size of one segment's input.

    batch_size: requests. draft_length: k, the largest of the batch; 0 in prefill. tokens: fed through the model, all
    requests and all k passes of a draft together. context_tokens: prompt and output of a request so far, mean.
    """

    segment: Segment
    batch_size: int
    draft_length: int
    tokens: int
    context_tokens: float

    @staticmethod
    def draft(batch_size: int, draft_length: int, context_tokens: float) -> SegmentShape:
        return SegmentShape(Segment.DRAFT, batch_size, draft_length, batch_size * draft_length, context_tokens)

    @staticmethod
    def verify(batch_size: int, draft_length: int, context_tokens: float) -> SegmentShape:
        return SegmentShape(Segment.VERIFY, batch_size, draft_length, batch_size * (draft_length + 1), context_tokens)

    @staticmethod
    def prefill(segment: Segment, batch_size: int, tokens: int, context_tokens: float = 0) -> SegmentShape:
        """tokens: of all prompts. Nothing depends on the context of a prefill; records have the mean prompt there,
        profiles have 0."""
        return SegmentShape(segment, batch_size, 0, tokens, context_tokens)

    @property
    def columns(self) -> dict[str, Any]:
        """The shape as columns of a table."""
        return {**self._asdict(), "segment": str(self.segment)}

    @property
    def name(self) -> str:
        """Short, for a table: draft4, verify64, prefill_target256."""
        return f"{self.segment}{self.batch_size if self.draft_length else self.tokens}"


def shapes_of(step: Step, members: Sequence[RequestState], draft_length: int) -> tuple[SegmentShape, ...]:
    """The segments of a step over these requests, which have not begun it. draft_length: the largest of theirs."""
    size = len(members)
    prompts = sum([state.request.prompt_tokens for state in members])
    context = (prompts + sum([state.emitted for state in members])) / size
    if step is Step.PREFILL:
        return tuple([SegmentShape.prefill(segment, size, prompts, context) for segment in step.segments])
    return tuple(
        [
            (SegmentShape.verify if segment is Segment.VERIFY else SegmentShape.draft)(size, draft_length, context)
            for segment in step.segments
        ]
    )
