"""What is right depends on seed, request and position alone, at the rate that was asked for."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from engines.errors import InputError
from engines.policy.request import Request
from sim.acceptance import (
    AcceptanceSource,
    Independent,
    Markov,
    PerPosition,
    PerRequestSpread,
    Remembered,
    Tapes,
    alpha_of,
    matches,
)
from sim.acceptance_fits import MODELS, fit_markov, fit_tapes, from_profile
from tests.calibrate.profiles import made_up

SOURCES: list[AcceptanceSource] = [
    Independent(0.8),
    PerPosition((0.8, 0.5, 0.4)),
    PerRequestSpread(0.7, 0.15),
    Markov(0.9, 0.4),
]
TAPE = np.random.default_rng(2).integers(-1, 2, 80).astype(np.int8)


def request(number: int, tokens: int = 200) -> Request:
    return Request(number, 10, tokens)


def tapes(source: AcceptanceSource, requests: int = 400, tokens: int = 200) -> dict[int, np.ndarray]:
    made = {i: source.acceptance(request(i, tokens), seed=4).tape for i in range(requests)}
    return {i: tape for i, tape in made.items() if tape is not None}


def test_matches_by_hand() -> None:
    assert matches(np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)).tolist() == [2, 1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_more_output_never_changes_what_came_before(source: AcceptanceSource) -> None:
    short, long = source.acceptance(request(5, 50), 0), source.acceptance(request(5, 100), 0)
    assert [min(m, 50 - p) for p, m in enumerate(long.matches[:50])] == short.matches
    assert source.acceptance(request(5), 1).matches != source.acceptance(request(5), 0).matches
    assert source.acceptance(request(6), 0).matches != source.acceptance(request(5), 0).matches


@pytest.mark.parametrize("source", [*SOURCES, PerPosition((1.0,)), Tapes({5: TAPE}, 0.5), Tapes({5: TAPE})], ids=str)
def test_fewer_positions_only_cut_off_what_reaches_beyond_them(source: AcceptanceSource) -> None:
    whole = source.acceptance(request(5, 80), 0)
    for tokens in (1, 2, 30, 79, 80, 500):
        known = source.acceptance(request(5, 80), 0, tokens)
        size = min(tokens, 80)
        assert known.output_tokens == whole.output_tokens
        assert known.matches == [min(matched, size - p) for p, matched in enumerate(whole.matches[:size])]
        if whole.tape is not None:
            assert known.tape is not None
            assert known.tape.tolist() == whole.tape[:size].tolist()


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_only_what_can_be_emitted_takes_memory(source: AcceptanceSource) -> None:
    tracemalloc.start()
    try:
        source.acceptance(request(5, 10_000_000), 0, 100)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_drafts_that_are_always_right_take_no_longer_than_others() -> None:
    known = PerPosition((1.0,)).acceptance(request(5, 300_000), 0)
    assert known.matches[:2] == [300_000, 299_999]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Tapes({}, unknown=0.5), {"source": "tapes", "unknown": 0.5}),
        (Tapes({}, origin="masks.jsonl"), {"source": "tapes", "unknown": 0.0, "masks": "masks.jsonl"}),
        (Independent(0.8), {"source": "independent", "alpha": 0.8}),
        (PerPosition((0.8, 0.5)), {"source": "per position", "rates": [0.8, 0.5]}),
        (PerRequestSpread(0.7, 0.15), {"source": "per-request spread", "mean": 0.7, "sd": 0.15}),
        (Markov(0.9, 0.4), {"source": "markov", "after_right": 0.9, "after_wrong": 0.4}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_source_says_what_it_is(source: AcceptanceSource, says: dict[str, object]) -> None:
    assert source.describe() == says


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: type(s).__name__)
def test_what_a_source_knows_is_made_of_whole_numbers(source: AcceptanceSource) -> None:
    known = source.acceptance(request(5, 50), 0)
    assert {type(matched) for matched in known.matches} == {int}
    assert known.tape is None or known.tape.dtype == np.int8


def test_a_draft_can_be_right_always_or_never() -> None:
    never, always = (Independent(alpha).acceptance(request(5, 9), 0).matches for alpha in (0.0, 1.0))
    assert never == [0] * 9
    assert always == list(range(9, 0, -1))


def test_independent_meets_the_closed_form() -> None:
    """At alpha 0.8 and k = 4 a step emits 1 + 0.8 + 0.64 + 0.512 + 0.4096 = 3.36 tokens."""
    lengths = [min(m, 4) + 1 for i in range(400) for m in Independent(0.8).acceptance(request(i), 0).matches[:190]]
    assert np.mean(lengths) == pytest.approx(3.36, abs=0.03)


@pytest.mark.parametrize(("length", "k", "alpha"), [(3.3616, 4, 0.8), (1.5, 1, 0.5), (1, 3, 0.0), (9, 8, 1.0)])
def test_alpha_has_the_acceptance_length(length: float, k: int, alpha: float) -> None:
    assert alpha_of(length, k) == pytest.approx(alpha, abs=1e-9)


def test_drafts_of_that_alpha_have_the_acceptance_length() -> None:
    source, steps = Independent(alpha_of(2.6, 3)), []
    for i in range(400):
        found, position = source.acceptance(request(i), 0).matches, 1
        while position + 3 <= len(found):
            steps.append(min(found[position], 3) + 1)
            position += steps[-1]
    assert np.mean(steps) == pytest.approx(2.6, abs=0.02)


def test_per_position_meets_its_rates_whatever_k() -> None:
    source = PerPosition((0.8, 0.5, 0.4))
    found = np.array([m for i in range(400) for m in source.acceptance(request(i), 0).matches[:190]])
    assert [(found > i).mean() for i in range(5)] == pytest.approx([0.8, 0.5, 0.4, 0.32, 0.256], abs=0.01)
    assert source.acceptance(request(0), 0).tape is None


def test_per_request_spread_has_its_mean_and_spread() -> None:
    alphas = [PerRequestSpread(0.7, 0.15).alpha(request(i), 0) for i in range(3000)]
    assert np.mean(alphas) == pytest.approx(0.7, abs=0.01)
    assert np.std(alphas) == pytest.approx(0.15, abs=0.01)
    assert PerRequestSpread(0.7, 0.0).acceptance(request(0), 0).matches == (
        Independent(0.7).acceptance(request(0), 0).matches
    )


def test_a_chain_begins_as_it_goes_on() -> None:
    """In the long run half of the drafts are right, at every position: 0.1 / (0.1 + 1 - 0.9)."""
    steps = [Markov(0.9, 0.1).acceptance(request(i, 3), 0).matches for i in range(3000)]
    assert (np.array(steps) > 0).mean(axis=0) == pytest.approx([0.5, 0.5, 0.5], abs=0.03)


def test_fits_recover_the_truth() -> None:
    independent = fit_tapes(tapes(Independent(0.8)), "independent", 4)
    assert independent.describe()["alpha"] == pytest.approx(0.8, abs=0.01)
    rates = fit_tapes(tapes(Independent(0.8)), "per position", 3).describe()["rates"]
    assert rates == pytest.approx([0.8, 0.64, 0.512], abs=0.01)
    spread = fit_tapes(tapes(PerRequestSpread(0.7, 0.15)), "per-request spread", 4).describe()
    assert (spread["mean"], spread["sd"]) == pytest.approx((0.7, 0.15), abs=0.03)
    markov = fit_markov(tapes(Markov(0.9, 0.4)))
    assert (markov.after_right, markov.after_wrong) == pytest.approx((0.9, 0.4), abs=0.015)


def test_a_chain_that_is_never_wrong_has_no_memory_to_fit() -> None:
    assert fit_markov({0: np.array([-1, 1, 1, 1], dtype=np.int8)}) == Markov(1.0, 1.0)


def test_a_tape_is_replayed() -> None:
    tape = np.array([-1, 1, 1, -1, 0, 1], dtype=np.int8)
    known = Tapes({7: tape}).acceptance(request(7), 0)
    assert known.output_tokens == 6
    assert known.matches == [0, 2, 1, 0, 0, 1]
    assert Tapes({7: tape}, unknown=1.0).acceptance(request(7), 0).matches[1:] == [3, 2, 1, 0, 1]
    assert known.tape is not None
    assert known.tape.tolist() == [-1, 1, 1, 0, 0, 1]


def test_unknown_positions_can_be_drawn_at_a_rate() -> None:
    blank = np.full(2000, -1, dtype=np.int8)
    known = Tapes({7: blank}, unknown=0.3).acceptance(request(7), 0)
    assert known.tape is not None
    assert (known.tape[1:] == 1).mean() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Independent(1.2), lambda: PerPosition(()), lambda: PerPosition((0.5, 0.6)),
        lambda: PerRequestSpread(0.5, 0.6), lambda: Markov(-0.1, 0.5), lambda: fit_markov({}),
        lambda: fit_tapes({1: np.array([-1, 1], dtype=np.int8)}, "independent", 4),
        lambda: fit_tapes({1: np.ones(50, dtype=np.int8)}, "lucky", 4), lambda: from_profile(made_up(), "lucky"),
        lambda: Tapes({}).acceptance(request(1), 0), lambda: alpha_of(0.9, 4), lambda: alpha_of(5.1, 4),
        lambda: alpha_of(1.0, 0), lambda: alpha_of(float("nan"), 4),
        lambda: Tapes({1: np.array([], dtype=np.int8)}).acceptance(request(1), 0),
    ],
)  # fmt: skip
def test_bad_values_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("model", MODELS)
def test_models_of_a_profile_have_its_acceptance(model: str) -> None:
    source = from_profile(made_up(), model)
    first = [matched > 0 for i in range(300) for matched in source.acceptance(request(i), 0).matches[1:190]]
    assert np.mean(first) == pytest.approx(0.8, abs=0.02)


def test_requests_of_a_profile_differ_unless_told_otherwise() -> None:
    assert from_profile(made_up()) == PerRequestSpread(0.8, 0.1)


def test_what_is_remembered_is_what_was_drawn() -> None:
    """Even if it is asked for again after it was forgotten."""
    source, remembered = Independent(0.8), Remembered(Independent(0.8), most=300)
    asked = [(number, seed, tokens) for number in (1, 2, 1) for seed in (0, 7) for tokens in (None, 90, None)]
    for number, seed, tokens in asked:
        expected = source.acceptance(request(number), seed, tokens)
        found = remembered.acceptance(request(number), seed, tokens)
        assert expected.tape is not None
        assert found.tape is not None
        assert found.matches == expected.matches
        assert (found.output_tokens, found.tape.tolist()) == (expected.output_tokens, expected.tape.tolist())
    assert remembered.acceptance(request(3), 0) is remembered.acceptance(request(3), 0)
    assert remembered.acceptance(request(3, 50), 0).output_tokens == 50
    assert remembered.describe() == source.describe()


def test_remembering_holds_no_more_than_it_may() -> None:
    def held(requests: int) -> int:
        remembered = Remembered(Independent(0.8), most=2000)
        tracemalloc.start()
        for number in range(requests):
            remembered.acceptance(request(number), 0)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    held(10)
    assert held(500) < 2 * held(10)
