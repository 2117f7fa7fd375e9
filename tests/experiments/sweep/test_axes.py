"""Axes of a sweep: what is drawn and how axes are combined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engines.errors import InputError
from engines.storage.validation import checked
from experiments.sweep.axes import Draw, Random, combined

DRAWS: dict[str, Any] = {
    "rate": {"log_uniform": [1.0, 100.0]},
    "slots": {"uniform": [3, 5]},
    "decode_limit": {"log_uniform": [1, 64]},
    "k": {"choice": ["2", "4", "8"]},
    "cv": {"uniform": [0.5, 2.5]},
}


def drawn(count: int = 4000, seed: int = 1, **draws: Any) -> dict[str, list[Any]]:
    return checked(Random, {"count": count, "seed": seed, **(draws or DRAWS)}).axes()


def test_a_grid_takes_every_combination_and_the_first_axis_changes_slowest() -> None:
    assert combined({"a": [1, 2], "b": [3, 4]}, []) == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4},
    ]  # fmt: skip


def test_axes_of_a_zip_go_together_within_the_grid() -> None:
    assert combined({"a": [1, 2]}, [{"b": [3, 4], "c": [5, 6]}]) == [
        {"a": 1, "b": 3, "c": 5}, {"a": 1, "b": 4, "c": 6}, {"a": 2, "b": 3, "c": 5}, {"a": 2, "b": 4, "c": 6},
    ]  # fmt: skip


def test_draws_have_the_distributions_that_were_asked_for() -> None:
    axes = drawn()
    rate, cv = np.array(axes["rate"]), np.array(axes["cv"])
    assert rate.min() >= 1
    assert rate.max() <= 100
    assert np.median(rate) == pytest.approx(10, rel=0.1)  # the middle of the logarithms
    assert cv.mean() == pytest.approx(1.5, abs=0.05)
    counts = {value: axes["slots"].count(value) for value in (3, 4, 5)}  # both bounds, as often as the rest
    assert sum(counts.values()) == 4000
    assert min(counts.values()) > 1200
    assert all(isinstance(value, int) for value in axes["slots"] + axes["decode_limit"])
    assert {min(axes["decode_limit"]), max(axes["decode_limit"])} == {1, 64}
    assert np.mean(np.array(axes["decode_limit"]) <= 8) == pytest.approx(0.5, abs=0.06)
    assert set(axes["k"]) == {"2", "4", "8"}


def test_more_draws_or_another_axis_change_nothing_that_is_drawn_already() -> None:
    axes = drawn(100)
    assert {name: values[:100] for name, values in drawn(300).items()} == axes
    assert drawn(100, rate=DRAWS["rate"])["rate"] == axes["rate"]
    assert drawn(100, seed=2)["rate"] != axes["rate"]
    assert np.corrcoef(axes["rate"], axes["cv"])[0, 1] == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ({"uniform": [2, 1]}, "rate.uniform = [2, 1]: need low <= high"),
        ({"log_uniform": [0, 1]}, "rate.log_uniform = [0, 1]: a logarithm needs numbers above 0"),
        ({"uniform": [1, 2], "choice": [1]}, "give one of uniform, log_uniform and choice"),
        ({}, "give one of uniform, log_uniform and choice"),
        ({"normal": [1, 2]}, "no such setting"),
        ({"choice": []}, "rate.choice = []"),
    ],
)
def test_a_bad_draw_is_refused(draw: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        drawn(rate=draw)
    assert message in str(caught.value)


def test_too_many_cells_and_axes_given_twice_are_refused() -> None:
    many = list(range(1001))
    with pytest.raises(InputError, match="cells = 1002001: a sweep can have 100000 at most"):
        combined({"a": many, "b": many}, [])
    with pytest.raises(InputError, match="a = 'given twice'"):
        combined({"a": [1]}, [{"a": [2]}])


@pytest.mark.parametrize(
    ("draw", "value", "expected"),
    [
        ({"choice": [1, 2, 4]}, 2, [1, 4]),
        ({"choice": [1, 2, 4]}, 4, [2]),
        ({"choice": [4, 1, 2]}, 4, [1, 2]),  # in no order
        ({"choice": ["0.8", "0.5"]}, "0.8", ["0.5"]),
        ({"uniform": [0.0, 8.0]}, 2.0, [1.0, 3.0, 1.75, 2.25]),
        ({"uniform": [0.0, 8.0]}, 0.0, [1.0, 0.25]),
        ({"uniform": [1, 5]}, 3, [2, 4]),
        ({"log_uniform": [4, 64]}, 62, [44, 64, 57]),
        ({"log_uniform": [1.0, 256.0]}, 16.0, [8.0, 32.0, 16 / 2**0.25, 16 * 2**0.25]),
    ],
)
def test_neighbours(draw: dict[str, Any], value: Any, expected: list[Any]) -> None:
    assert Draw.model_validate(draw).neighbours(value) == pytest.approx(expected)
