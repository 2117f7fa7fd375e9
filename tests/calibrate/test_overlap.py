"""Rates are found from spans whatever the hosts of the lanes do in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from calibrate.overlap import FASTEST, SLOWEST, Span, no_hiccups, rate_beside_all, times_beside

RATES = {  # stream -> the others that run -> its speed
    0: {frozenset(): 1.0, frozenset({1}): 0.3, frozenset({2}): 0.6, frozenset({1, 2}): 0.2},
    1: {frozenset(): 1.0, frozenset({0}): 0.8, frozenset({2}): 0.7, frozenset({0, 2}): 0.6},
    2: {frozenset(): 1.0, frozenset({0}): 0.5, frozenset({1}): 0.4, frozenset({0, 1}): 0.3},
}
SOLO_S = (5.0, 6.1, 13.0)


def go(solo_s: Sequence[float], gaps_s: Sequence[float], until_s: float) -> list[list[Span]]:
    """Each stream works for its time alone, stretched by what runs beside it, then its host takes its gap."""
    left: dict[int, float] = {}
    starts, wake = [0.0] * len(solo_s), [0.01 * i for i in range(len(solo_s))]
    spans: list[list[Span]] = [[] for _ in solo_s]
    now = 0.0
    while now < until_s:
        speed = {i: RATES[i][frozenset(left) - {i}] for i in left}
        ends = {i: now + left[i] / speed[i] for i in left}
        sleeping = {i: wake[i] for i in range(len(solo_s)) if i not in left}
        then = min([*ends.values(), *sleeping.values()])
        for i in left:
            left[i] -= (then - now) * speed[i]
        now = then
        for i, end in ends.items():
            if end == then:
                del left[i]
                spans[i].append((starts[i], now))
                wake[i] = now + gaps_s[i]
        for i, woken in sleeping.items():
            if woken == then:
                left[i], starts[i] = solo_s[i], now
    return spans


def rates(
    spans: Sequence[Sequence[Span]], known: Mapping[int, Mapping[frozenset[int], float]] | None = None
) -> list[float]:
    found = []
    for i, (calls, beside) in enumerate(times_beside(spans)):
        others = frozenset(range(len(spans))) - {i}
        some = known[i] if known else {}
        found.append(rate_beside_all(calls * SOLO_S[i], beside, others, some.get))
    return found


@pytest.mark.parametrize("gaps_s", [(0.0, 0.0), (1.0, 0.8), (4.0, 0.1), (3.0, 9.0)])
def test_gaps_do_not_change_the_rates_of_a_pair(gaps_s: tuple[float, float]) -> None:
    spans = go(SOLO_S[:2], gaps_s, 3000)
    assert rates(spans) == pytest.approx([0.3, 0.8], abs=0.01)
    if gaps_s[0] > 1:
        completions = 3000 / len(spans[0])
        assert (SOLO_S[0] + gaps_s[0]) / completions > 0.36  # what counting completions would have said


@pytest.mark.parametrize("gaps_s", [(0.0, 0.0, 0.0), (1.0, 0.8, 2.0), (4.0, 3.0, 0.5)])
def test_a_triple_is_found_with_what_its_pairs_were(gaps_s: tuple[float, float, float]) -> None:
    spans = go(SOLO_S, gaps_s, 9000)
    assert rates(spans, RATES) == pytest.approx([0.2, 0.6, 0.3], abs=0.01)
    assert rates(spans) == pytest.approx([0.2, 0.6, 0.3], abs=0.12)  # pairs unknown: by the power of their number


def test_milliseconds_say_what_seconds_do() -> None:
    spans = [[(start / 1e6, end / 1e6) for start, end in each] for each in go(SOLO_S, (1.0, 0.8, 2.0), 9000)]
    some = {i: {others: RATES[i][others] for others in RATES[i] if len(others) == 1} for i in RATES}
    for i, (calls, beside) in enumerate(times_beside(spans)):
        others = frozenset(range(3)) - {i}
        found = rate_beside_all(calls * SOLO_S[i] / 1e6, beside, others, some[i].get)
        assert found == pytest.approx(RATES[i][others], abs=0.01)


@pytest.mark.parametrize(("work_s", "rate"), [(0.0, SLOWEST), (1e-3, 0.5), (2e-3, 1.0), (4e-3, FASTEST)])
def test_a_rate_lies_between_the_slowest_and_the_fastest(work_s: float, rate: float) -> None:
    """Two milliseconds beside the other: what was done in them, had the stream been alone, over their length."""
    other = frozenset({1})
    assert rate_beside_all(work_s, {other: 2e-3}, other, lambda others: None) == pytest.approx(rate)


def test_streams_that_never_ran_together_did_not_slow_each_other() -> None:
    apart = [[(0.0, 1.0), (4.0, 5.0), (8.0, 9.0)], [(2.0, 3.0), (6.0, 7.0), (10.0, 11.0)]]
    (calls, beside), _ = times_beside(apart)
    assert rate_beside_all(calls * 1.0, beside, frozenset({1}), lambda others: None) == 1.0


def test_time_is_counted_once_for_each_company() -> None:
    spans = [[(0.0, 1.0), (2.0, 6.0), (7.0, 9.0)], [(1.0, 3.0), (4.0, 8.0)]]
    (first, beside_first), (second, beside_second) = times_beside(spans)
    assert (first, second) == (1, 2)  # from 1, when both have begun, to 8, when one has ended
    assert beside_first == {frozenset({1}): 3.0, frozenset(): 1.0}
    assert beside_second == {frozenset(): 1.0 + 1.0, frozenset({0}): 1.0 + 2.0 + 1.0}


def test_a_stall_of_the_machine_does_not_count() -> None:
    steady = [[(i * 1.0, i * 1.0 + 1.0) for i in range(20)] for _ in range(2)]
    (calls, beside), _ = times_beside(steady)
    stalled = [[*steady[0][:10], (10.0, 30.0), *((i + 20.0, i + 21.0) for i in range(10, 20))], [(0.0, 50.0)]]
    stalled[1] = [(i * 1.0, i * 1.0 + 1.0) for i in range(50)]
    (others, found), _ = times_beside(stalled)
    assert beside[frozenset({1})] / calls == pytest.approx(1.0)
    assert found[frozenset({1})] / others == pytest.approx(1.0)  # and not (20 + 20) / 21
    assert no_hiccups(stalled[0]).count(False) == 1
