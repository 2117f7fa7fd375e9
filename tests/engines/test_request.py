"""Which requests are served at all, and how a target pass is booked."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from engines.compiled import in_use
from engines.errors import InputError
from engines.policy.architecture import PDV
from engines.policy.request import LATEST_S, MOST_TOKENS, Emission, Request, Settlement
from engines.policy.request_state import settle
from engines.policy.scheduler import Scheduler
from tests.engines.invariants import settle_token_by_token

CASES = [
    (Emission(matched, stop_after), k, remaining)
    for k in range(6)
    for matched in range(k + 1)
    for remaining in range(1, 9)
    for stop_after in (None, *range(1, matched + 2))
]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", [-1, 1.5, "7", True, 2**63]),
        ("prompt_tokens", [0, 5.5, "7", True, None, 10**13, 2**40, MOST_TOKENS + 1]),
        ("max_tokens", [0, -1, 5.5, "7", True, None, 10**13, 2**40, MOST_TOKENS + 1]),
        ("arrival_s", [-1.0, math.nan, math.inf, 1e300, "now", True, 2 * LATEST_S]),
        ("temperature", [-1.0, math.nan, math.inf, "warm", None, True, 10**400]),
        ("seed", [-1, 0.5, 2**63]),
    ],
)
def test_a_request_that_no_engine_can_serve_never_enters_the_scheduler(field: str, values: list[Any]) -> None:
    scheduler = Scheduler(PDV)
    other = scheduler.submit(Request(1, 10, 5), 0.0)
    for value in values:
        with pytest.raises(InputError) as refused:
            scheduler.submit(Request(**{"id": 7, "prompt_tokens": 10, "max_tokens": 5, field: value}), 0.0)
        assert refused.value.field == field
    assert scheduler.requests == {1: other}
    assert [work.members for work in scheduler.dispatch(0.0)] == [[other]]


@pytest.mark.parametrize(
    "limit",
    [0, pytest.param(2.5, marks=pytest.mark.skipif(in_use(), reason="compiled code checks types first")), 10**13],
)
def test_a_limit_that_is_no_count_never_enters_the_scheduler(limit: Any) -> None:
    scheduler = Scheduler(PDV)
    with pytest.raises(InputError, match="max_tokens"):
        scheduler.submit(Request(0, 10, 5), 0.0, max_tokens=limit)
    assert scheduler.idle


def test_the_widest_request_is_taken() -> None:
    Request(2**63 - 1, MOST_TOKENS, MOST_TOKENS, LATEST_S, temperature=1e6, seed=2**63 - 1).check()


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
