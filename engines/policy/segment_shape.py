"""The size of a segment's input, on which its duration depends. Calibration, records and the simulator share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from engines.policy.architecture import Segment, Step
from engines.policy.request_state import RequestState

# Names, since members of a class are slow to look up.
_PREFILL: Final = Step.PREFILL
_BOTH: Final = Step.DRAFT_VERIFY
_DRAFT_STEP: Final = Step.DRAFT
_PREFILL_DRAFT: Final = Segment.PREFILL_DRAFT
_PREFILL_TARGET: Final = Segment.PREFILL_TARGET
_DRAFT: Final = Segment.DRAFT
_VERIFY: Final = Segment.VERIFY
_new: Final = tuple.__new__  # makes a named tuple in half the time that calling its class takes


CATCH_UP_TOKENS = 256
"""Most tokens that the draft model catches up with in one pass."""


class SegmentShape(NamedTuple):
    """The size of one segment's input.

    batch_size: number of requests. draft_length: the largest k in the batch, 0 for prefill and for a verify without
    drafts.
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
        return f"{self.segment}{self.tokens if self.prefills else self.batch_size}"

    @property
    def prefills(self) -> bool:
        """Whether this is a part of a prefill."""
        return self.segment is _PREFILL_DRAFT or self.segment is _PREFILL_TARGET


def catch_up_of(members: Sequence[RequestState]) -> tuple[SegmentShape, ...]:
    """Return the shape of what shows the draft model the tokens that these requests emitted without it, if any.

    It counts as a prefill of one prompt, since it packs the tokens of all requests; catch_up_passes cuts it.
    """
    behind = sum([state.behind for state in members])
    if not behind:
        return ()
    context = sum([state.context_tokens for state in members]) / len(members)
    return (SegmentShape(_PREFILL_DRAFT, 1, 0, behind, context),)


def catch_up_passes(tokens: int) -> list[SegmentShape]:
    """Return the passes in which the draft model catches up with this many tokens."""
    sizes = [CATCH_UP_TOKENS] * (tokens // CATCH_UP_TOKENS) + [tokens % CATCH_UP_TOKENS]
    return [SegmentShape.prefill(_PREFILL_DRAFT, 1, size) for size in sizes if size]


def shapes_of(
    step: Step, members: Sequence[RequestState], draft_length: int, drafts: bool = True
) -> tuple[SegmentShape, ...]:
    """Return the shapes of the segments of a step that these requests are about to start.

    draft_length: the largest k among them. At 0, draft and verify in one step is the verify alone. drafts: whether
    anything can ever be drafted; otherwise prefill leaves the draft model out.
    """
    size, context_tokens = len(members), 0
    for state in members:
        context_tokens += state.request.prompt_tokens + state.emitted
    context = context_tokens / size
    if step is _PREFILL:
        prompts = sum([state.request.prompt_tokens for state in members])
        segments = step.segments if drafts else (_PREFILL_TARGET,)
        return tuple([SegmentShape(segment, size, 0, prompts, context) for segment in segments])
    draft = _new(SegmentShape, (_DRAFT, size, draft_length, size * draft_length, context))
    verify = _new(SegmentShape, (_VERIFY, size, draft_length, size * (draft_length + 1), context))
    if step is _BOTH and draft_length:
        return draft, verify
    return (draft,) if step is _DRAFT_STEP else (verify,)
