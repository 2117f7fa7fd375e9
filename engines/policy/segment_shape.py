"""The size of a segment's input, on which its duration depends. Calibration, records and the simulator share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from engines.policy.architecture import Segment, Step
from engines.policy.request import RequestState

# Names, since members of a class are slow to look up.
_PREFILL, _BOTH, _VERIFY_STEP = Step.PREFILL, Step.DRAFT_VERIFY, Step.VERIFY
_DRAFT, _VERIFY = Segment.DRAFT, Segment.VERIFY
_new = tuple.__new__  # makes a named tuple in half the time that calling its class takes


class SegmentShape(NamedTuple):
    """The size of one segment's input.

    batch_size: number of requests. draft_length: the largest k in the batch, 0 for prefill.
    tokens: tokens fed through the model, over all requests and, for draft, over all k passes.
    context_tokens: mean context per request.
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
        """Return the shape of a prefill of `tokens` prompt tokens over all requests.

        Nothing depends on context_tokens here. Records contain the mean prompt length, profiles 0.
        """
        return SegmentShape(segment, batch_size, 0, tokens, context_tokens)

    @property
    def rows(self) -> int:
        """Tokens of one pass through the model: requests of a draft, all tokens of the others."""
        return self.batch_size if self.segment is _DRAFT else self.tokens

    @property
    def columns(self) -> dict[str, Any]:
        """The shape as table columns."""
        return {**self._asdict(), "segment": str(self.segment)}

    @property
    def name(self) -> str:
        """Short name for tables, of batch size or (prefill) tokens: draft4, verify64, prefill_target256."""
        return f"{self.segment}{self.batch_size if self.draft_length else self.tokens}"


def shapes_of(step: Step, members: Sequence[RequestState], draft_length: int) -> tuple[SegmentShape, ...]:
    """Return the shapes of the segments of a step that these requests are about to start.

    draft_length: the largest k among them.
    """
    size = len(members)
    emitted = sum([state.emitted for state in members])
    prompts = sum([state.request.prompt_tokens for state in members])
    context = (prompts + emitted) / size
    if step is _PREFILL:
        return tuple([SegmentShape(segment, size, 0, prompts, context) for segment in step.segments])
    draft = _new(SegmentShape, (_DRAFT, size, draft_length, size * draft_length, context))
    verify = _new(SegmentShape, (_VERIFY, size, draft_length, size * (draft_length + 1), context))
    return (draft, verify) if step is _BOTH else (verify,) if step is _VERIFY_STEP else (draft,)
