"""The draft length and the controller that moves it."""

from __future__ import annotations

from typing import Any

import pytest

from engines.errors import InputError
from engines.policy.draft_length import AdaptiveDraftLength, FixedDraftLength


def _after(observations: list[tuple[int, int, int]], **rule: Any) -> int:
    controller = AdaptiveDraftLength(**rule).controller()
    for drafted, accepted, verify_queue in observations:
        controller.observe(drafted, accepted, verify_queue)
    return controller.k


def test_defaults_are_the_documented_ones() -> None:
    rule = AdaptiveDraftLength()
    assert (rule.minimum, rule.start, rule.maximum) == (2, 4, 8)
    assert (rule.window, rule.every, rule.raise_above, rule.lower_below) == (100, 10, 0.7, 0.4)
    assert FixedDraftLength().k == 4


def test_a_fixed_draft_length_never_moves() -> None:
    controller = FixedDraftLength(3).controller()
    for _ in range(50):
        controller.observe(3, 3, 0)
    assert controller.k == 3


@pytest.mark.parametrize(
    ("accepted", "queue", "expected"),
    [
        (3, 0, 5),  # 0.75 is above 0.7
        (3, 4, 5),  # a queue of four is still short
        (3, 5, 4),  # neither short nor long: keep
        (3, 13, 3),  # a long queue lowers, however good the acceptance
        (3, 12, 4),  # twelve is not long yet
        (2, 0, 4),  # 0.5 is between the bounds
        (1, 0, 3),  # 0.25 is below 0.4
    ],
)
def test_ten_verifications_move_it_by_one_at_most(accepted: int, queue: int, expected: int) -> None:
    observations = [(4, accepted, queue)] * 10
    assert _after(observations[:9]) == 4
    assert _after(observations) == expected
    assert _after(observations + observations[:9]) == expected


@pytest.mark.parametrize(("drafted", "accepted", "expected"), [(10, 7, 4), (10, 4, 4)])
def test_the_bounds_themselves_keep(drafted: int, accepted: int, expected: int) -> None:
    assert _after([(drafted, accepted, 0)] * 10) == expected


@pytest.mark.parametrize(("accepted", "expected"), [(4, 8), (0, 2)])
def test_it_stays_within_its_bounds(accepted: int, expected: int) -> None:
    assert _after([(4, accepted, 0)] * 200) == expected


def test_the_rate_weighs_drafts_and_forgets_what_left_the_window() -> None:
    assert _after([(1, 1, 0)] * 5 + [(8, 0, 0)] * 5) == 3  # 5 of 45, not one half
    good_then_bad = [(4, 4, 0)] * 10 + [(4, 0, 0)] * 10
    assert _after(good_then_bad, window=10) == 4  # raised, then lowered: the good ones are forgotten
    assert _after(good_then_bad, window=100) == 5  # raised, then one half: kept


def test_the_least_values_are_taken() -> None:
    rule = AdaptiveDraftLength(1, 1, 1, window=1, every=1, raise_above=0, lower_below=0, short_queue=0, long_queue=0)
    controller = rule.controller()
    controller.observe(1, 0, 1)
    assert controller.k == 1


@pytest.mark.parametrize("k", [-1, 2.5, "4", True, None])
def test_a_bad_fixed_draft_length_is_named(k: Any) -> None:
    with pytest.raises(InputError, match="draft_length"):
        FixedDraftLength(k)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("minimum", {"minimum": 0}),
        ("start", {"start": "4"}),
        ("maximum", {"maximum": 8.5}),
        ("minimum, start, maximum", {"minimum": 5}),
        ("minimum, start, maximum", {"maximum": 3}),
        ("window", {"window": 0}),
        ("every", {"every": 2.5}),
        ("raise_above", {"raise_above": 1.1}),
        ("lower_below", {"lower_below": "low"}),
        ("lower_below, raise_above", {"lower_below": 0.9}),
        ("short_queue", {"short_queue": -1}),
        ("short_queue, long_queue", {"short_queue": 20}),
    ],
)
def test_a_bad_setting_of_an_adaptive_draft_length_is_named(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        AdaptiveDraftLength(**values)
    assert caught.value.field == f"draft_length.{field}"
