"""Ranking: bisection, the Pareto front, and the probability of being the best."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.search.evaluate import bisected
from experiments.search.ranking import pareto_front, probability_best, reached, scores


@given(st.lists(st.integers(-1, 16), min_size=1, max_size=6))
def test_bisection_finds_the_highest_step_that_each_item_meets(limits: list[int]) -> None:
    rounds = []

    def meets(asked: Mapping[int, int]) -> dict[int, bool]:
        rounds.append(dict(asked))
        return {item: step <= limits[item] for item, step in asked.items()}

    assert bisected(len(limits), 17, meets) == limits
    assert len(rounds) <= 5  # of 18 possible answers


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20))
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    gain, cost = np.array(points, dtype=float).T
    expected = [
        not any((g >= x and c <= y) and (g > x or c < y) for g, c in points) for x, y in points
    ]  # fmt: skip
    assert pareto_front(gain, cost).tolist() == expected


def test_points_without_a_value_are_not_on_the_front() -> None:
    assert pareto_front(np.array([1.0, np.nan, 3.0]), np.array([1.0, 0.0, np.nan])).tolist() == [True, False, False]


def test_a_finalist_reaches_the_step_below_the_first_that_it_misses() -> None:
    attainment = np.array([[1.0, 0.96, 0.9, 0.97], [0.5, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert reached(attainment, 0.95).tolist() == [1, -1, 3]
    found = scores(np.tile([1.0, 2.0, 3.0, 4.0], (3, 1)), attainment, 0.95)
    assert found == pytest.approx([2.0, -np.inf, 4.0], rel=1e-5)


def test_between_equal_rates_the_higher_attainment_decides() -> None:
    assert scores(np.ones((2, 1)), np.array([[0.96], [0.99]]), 0.95).argmax() == 1


def test_the_probability_follows_from_the_pairs_of_repeats() -> None:
    generator = np.random.default_rng(1)
    load = generator.normal(100, 20, 10)  # varies far more than the two differ, but is the same for both
    objective = np.stack([load, load + generator.normal(1, 0.5, 10)])[:, None, :]
    assert probability_best(objective, np.ones_like(objective), 0.0)[1] > 0.99
    same = np.stack([load, load])[:, None, :]
    assert probability_best(same, np.ones_like(same), 0.0) == pytest.approx([0.5, 0.5])
    alone = np.stack([load, generator.normal(101, 20, 10)])[:, None, :]
    assert 0.05 < probability_best(alone, np.ones_like(alone), 0.0)[0] < 0.95


def test_the_probability_is_that_of_a_normal_difference() -> None:
    """The means of two samples of n differ by d; resampled, the difference has the standard error of the pairs."""
    from scipy.stats import norm

    generator = np.random.default_rng(2)
    pairs = generator.normal(0.3, 1.0, 50)
    objective = np.stack([np.zeros(50), pairs])[:, None, :]
    expected = norm.cdf(pairs.mean() / (pairs.std() / 50**0.5))
    assert probability_best(objective, np.ones_like(objective), 0.0)[1] == pytest.approx(expected, abs=0.03)


def test_what_misses_the_objective_cannot_be_the_best() -> None:
    objective = np.array([[[10.0, 10.0]], [[5.0, 5.0]]])
    attainment = np.array([[[0.5, 0.5]], [[1.0, 1.0]]])
    assert probability_best(objective, attainment, 0.95).tolist() == [0.0, 1.0]
    assert probability_best(objective, attainment * 0.0, 0.95).tolist() == [0.0, 0.0]
