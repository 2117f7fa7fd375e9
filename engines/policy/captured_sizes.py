"""The sizes of graphs that an engine captures, and how it pads batches to them. Needs no torch.

A captured graph runs one size. A smaller batch is padded to it and takes as long, so the simulator pads in the same
way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engines.pickling import by_fields
from engines.policy.architecture import Architecture, Segment, Step
from engines.policy.segment_shape import CATCH_UP_TOKENS, SegmentShape

BATCHES = (1, 2, 4, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
TOKENS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


class CapturedSizes(NamedTuple):
    """Sizes to capture: of draft and verify batches, and of prefills in tokens."""

    batches: Sequence[int]
    tokens: Sequence[int]


ENGINES = CapturedSizes(BATCHES, TOKENS)  # what engines capture


@dataclass(frozen=True)
class CapturePlan:
    """What one stream captures.

    draft_batch, verify_batch: largest batches; 0 for a stage that never runs. draft_lengths: all possible k. prompts,
    tokens: most prompts and most tokens of a prefill; 0 without prefill. sizes: the sizes to capture below the
    largest, which is always captured. drafts: whether anything can be drafted, so that prefill needs the draft model.
    catches_up: whether the draft model may have to catch up here before it drafts.
    """

    draft_batch: int = 0
    verify_batch: int = 0
    draft_lengths: tuple[int, ...] = ()
    prompts: int = 0
    tokens: int = 0
    sizes: CapturedSizes = ENGINES
    drafts: bool = True
    catches_up: bool = False
    _captured: dict[tuple[Segment, int, int, int], tuple[int, int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )  # the batch and the tokens of what was asked for so far

    def __reduce__(self) -> tuple[Any, ...]:
        return by_fields(self)

    @property
    def draft_batches(self) -> list[int]:
        return sizes_up_to(self.draft_batch, self.sizes.batches)

    @property
    def verify_batches(self) -> list[int]:
        return sizes_up_to(self.verify_batch, self.sizes.batches)

    @property
    def prefill_tokens(self) -> list[int]:
        return sizes_up_to(self.tokens, self.sizes.tokens)

    @property
    def catch_up_tokens(self) -> list[int]:
        return sizes_up_to(CATCH_UP_TOKENS if self.catches_up else 0, self.sizes.tokens)

    def padded_pass(self, shape: SegmentShape) -> SegmentShape:
        """Return the captured shape of a pass that catches up (engines.policy.segment_shape.catch_up_passes)."""
        return shape._replace(tokens=least_from(self.catch_up_tokens, shape.tokens) or shape.tokens)

    def padded(self, shape: SegmentShape) -> SegmentShape:
        """Return the captured shape that runs this one, or the shape itself if it is larger than all of them.

        The rows that only fill up a draft or a verify have next to no context, so the mean context falls.
        """
        segment, size, k, tokens, context = shape
        captured = self._captured.get((segment, size, k, tokens))
        if captured is None:
            captured = self._captured[segment, size, k, tokens] = self._captured_for(segment, size, k, tokens)
        batch, fed = captured
        mean = context * size / batch
        if batch == size and fed == tokens and mean == context:
            return shape
        return tuple.__new__(SegmentShape, (segment, batch, k, fed, mean))  # faster than calling the class

    def _captured_for(self, segment: Segment, size: int, k: int, tokens: int) -> tuple[int, int]:
        if segment is Segment.DRAFT:
            batch = least_from(self.draft_batches, size) or size
            return batch, batch * k
        if segment is Segment.VERIFY:
            batch = least_from(self.verify_batches, size) or size
            return batch, batch * (k + 1)
        return size, least_from(self.prefill_tokens, tokens) or tokens


def capture_plans(
    architecture: Architecture, prefill_tokens: int, sizes: CapturedSizes | None = ENGINES
) -> dict[int, CapturePlan]:
    """Return the capture plan of each stream.

    prefill_tokens: most tokens of one prefill (see prefill_tokens_of). sizes: None for an engine that captures
    nothing; the result is then empty.
    """
    if sizes is None:
        return {}
    streams = {lane.stream for lane in architecture.lanes}
    return {stream: _plan_for(architecture, stream, prefill_tokens, sizes) for stream in streams}


def _plan_for(architecture: Architecture, stream: int, prefill_tokens: int, sizes: CapturedSizes) -> CapturePlan:
    lengths = architecture.draft_length
    limits = {step: n for lane in architecture.lanes if lane.stream == stream for step, n in lane.steps.items()}
    both = limits.get(Step.DRAFT_VERIFY, 0)
    draft = limits.get(Step.DRAFT, both)
    hybrid = min(architecture.hybrid_at_or_below, draft)
    prompts = limits.get(Step.PREFILL, 0)
    return CapturePlan(
        draft_batch=draft if architecture.drafts else 0,
        verify_batch=max(limits.get(Step.VERIFY, both), hybrid),
        draft_lengths=tuple(range(lengths.minimum, lengths.maximum + 1)),
        prompts=prompts,
        tokens=prefill_tokens if prompts else 0,
        sizes=sizes,
        drafts=architecture.drafts,
        catches_up=draft > 0 and architecture.catches_up,
    )


def prefill_tokens_of(architecture: Architecture, longest_prompt: int) -> int:
    """Return the largest prefill that an engine captures, in tokens. Larger ones run uncaptured.

    This is a full prefill, but at most TOKENS[-1], unless a single prompt is longer.
    """
    packed = max(lane.steps.get(Step.PREFILL, 0) for lane in architecture.lanes)
    return max(longest_prompt, min(packed * longest_prompt, TOKENS[-1]))


def sizes_up_to(limit: int, sizes: Sequence[int]) -> list[int]:
    """Return the sizes below the limit, and the limit."""
    return [*(size for size in sizes if size < limit), limit] if limit else []


def least_from(sizes: Sequence[int], size: int) -> int | None:
    """Return the smallest of these ascending sizes that is at least `size`, or None."""
    place = bisect_left(sizes, size)
    return sizes[place] if place < len(sizes) else None
