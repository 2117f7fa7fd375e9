"""The sizes that engines capture, and how batches are padded to them."""

from __future__ import annotations

import pytest

from engines.policy.architecture import ARCHITECTURES, PD, PDV, Segment, Step
from engines.policy.captured_sizes import (
    CapturedSizes,
    CapturePlan,
    capture_plans,
    prefill_tokens_of,
    sizes_up_to,
)
from engines.policy.draft_length import AdaptiveDraftLength
from engines.policy.segment_shape import SegmentShape


@pytest.mark.parametrize(
    ("architecture", "stream", "expected"),
    [
        (ARCHITECTURES["baseline"], 0, CapturePlan(1, 1, (4,), 1, 100)),
        (PD, 0, CapturePlan(0, 0, (4,), 1, 100)),
        (PD, 1, CapturePlan(6, 6, (4,), 0, 0)),
        (PDV, 0, CapturePlan(6, 1, (4,), 0, 0)),  # hybrid: a batch of one is verified in the decode lane
        (PDV, 1, CapturePlan(0, 12, (4,), 0, 0)),
        (
            PDV.replace(hybrid_at_or_below=0, draft_length=AdaptiveDraftLength(2, 4, 3)),
            0,
            CapturePlan(6, 0, (2, 3, 4), 0, 0),
        ),
    ],
)
def test_a_stream_is_ready_for_what_its_lanes_can_run(architecture, stream: int, expected: CapturePlan) -> None:  # type: ignore[no-untyped-def]
    assert capture_plans(architecture, 100)[stream] == expected


def test_sizes_end_with_the_limit() -> None:
    assert sizes_up_to(6, (1, 2, 4, 8)) == [1, 2, 4, 6]
    assert sizes_up_to(8, (1, 2, 4, 8)) == [1, 2, 4, 8]
    assert sizes_up_to(0, (1, 2)) == []


def test_batches_are_padded_to_the_next_captured_size_and_not_beyond_the_limit() -> None:
    plan = capture_plans(PD.with_batch_limits({Step.DRAFT_VERIFY: 20}), 100)[1]
    found = {size: plan.padded(SegmentShape.verify(size, 4, 300.0)) for size in (1, 3, 13, 17, 20)}
    assert found == {  # what only fills up has next to no context
        size: SegmentShape.verify(n, 4, 300.0 * size / n)
        for size, n in ((1, 1), (3, 4), (13, 16), (17, 20), (20, 20))
    }
    assert plan.padded(SegmentShape.draft(5, 4, 12.0)) == SegmentShape.draft(6, 4, 10.0)
    assert plan.padded(SegmentShape.draft(21, 4, 10)) == SegmentShape.draft(21, 4, 10)  # runs uncaptured


def test_a_prefill_is_padded_in_its_tokens_and_keeps_its_prompts() -> None:
    plan = capture_plans(PD, 400)[0]
    prefill = SegmentShape.prefill
    for tokens, padded in ((1, 16), (129, 192), (385, 400), (401, 401)):
        assert plan.padded(prefill(Segment.PREFILL_TARGET, 2, tokens)) == prefill(Segment.PREFILL_TARGET, 2, padded)


def test_an_engine_that_captures_nothing_has_no_plans() -> None:
    assert capture_plans(PD, 100, None) == {}
    assert capture_plans(PD, 100, CapturedSizes((2,), (64,)))[1].draft_batches == [2, 6]


@pytest.mark.parametrize(
    ("limit", "longest", "tokens"), [(1, 100, 100), (4, 100, 400), (64, 1000, 8192), (4, 9000, 9000)]
)
def test_a_full_prefill_is_captured_as_far_as_sizes_go(limit: int, longest: int, tokens: int) -> None:
    assert prefill_tokens_of(PD.with_batch_limits({Step.PREFILL: limit}), longest) == tokens
