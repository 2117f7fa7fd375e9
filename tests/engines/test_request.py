"""How a target pass is booked."""

from __future__ import annotations

import itertools

import pytest

from engines.request import Emission, Settlement, settle
from tests.engines.invariants import settle_token_by_token

CASES = [
    (Emission(matched, stop_after), k, remaining)
    for k in range(6)
    for matched in range(k + 1)
    for remaining in range(1, 9)
    for stop_after in (None, *range(1, matched + 2))
]


def test_settling_equals_walking_through_the_tokens_in_every_small_case() -> None:
    for emission, k, remaining in CASES:
        settlement = settle(emission, k, remaining)
        accepted, emitted, _ = settle_token_by_token(emission, k, remaining)
        assert (settlement.accepted, settlement.emitted) == (accepted, emitted), (emission, k, remaining)


def test_every_draft_is_accepted_rejected_or_discarded() -> None:
    for emission, k, remaining in CASES:
        settlement = settle(emission, k, remaining)
        booked = (settlement.accepted, settlement.rejected, settlement.discarded)
        assert sum(booked) == k
        assert min(booked) >= 0
        assert settlement.rejected == 0 or settlement.discarded == 0


def test_what_lies_past_the_end_cannot_change_the_booking() -> None:
    """A simulation knows whether drafts are right only up to the last output token; a live engine sees more."""
    for k, remaining in itertools.product(range(1, 6), range(1, 6)):
        bookings = {settle(Emission(matched), k, remaining) for matched in range(min(k, remaining), k + 1)}
        assert len(bookings) == 1


@pytest.mark.parametrize(
    ("emission", "k", "remaining", "expected"),
    [
        (Emission(), 0, 9, Settlement(1)),  # prefill
        (Emission(2), 4, 9, Settlement(3, 2, 2, 0)),  # the third draft is wrong
        (Emission(4), 4, 9, Settlement(5, 4, 0, 0)),  # all right, and the target's own token
        (Emission(4), 4, 2, Settlement(2, 2, 0, 2)),  # two are past the limit
        (Emission(4, 3), 4, 9, Settlement(3, 3, 0, 1)),  # the third draft ends the sequence
        (Emission(1, 2), 4, 9, Settlement(2, 1, 3, 0)),  # the target's own token ends it
    ],
)
def test_settling_by_hand(emission: Emission, k: int, remaining: int, expected: Settlement) -> None:
    assert settle(emission, k, remaining) == expected
