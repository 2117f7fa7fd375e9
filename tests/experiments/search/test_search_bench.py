"""The benchmark of searches: grids have the candidates of the space, and results are checked with new seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.errors import InputError
from experiments.bench.searches import by_grid, by_search, checked, grid_of
from experiments.search.config import Search
from tests.experiments.search.test_search import CLOSED, OPEN, SLO

pytest.importorskip("optuna")


def test_a_grid_has_every_choice_and_the_ends_of_ranges() -> None:
    found = grid_of(Search.from_dict(CLOSED), 20)
    assert {candidate["architecture"] for candidate in found} == {"pd", "pdv"}
    assert {candidate["slots"] for candidate in found} == {3, 64}
    limits = {candidate["decode_limit"] for candidate in found}
    assert {1, 6} < limits
    assert len(found) == 4 * len(limits) >= 20
    assert len(grid_of(Search.from_dict(CLOSED), 10_000)) == 24  # there are no more


def test_a_search_is_compared_with_a_grid_and_checked_with_other_seeds(tmp_path: Path) -> None:
    search = Search.from_dict({**CLOSED, **SLO})
    found, best = by_search(search, tmp_path / "search", 1), by_grid(search, 24, tmp_path / "grid", 1)
    assert (best.candidates, best.simulations) == (24, 24 * 2 + 3 * 4)
    assert found.simulations < best.simulations
    assert found.objective >= 0.97 * best.objective
    table = checked(search, found, 3, tmp_path / "checked", 1)
    assert len(table) == 1
    assert table["objective"].item() == pytest.approx(found.objective, rel=0.2)
    assert table["attainment"].item() >= 0.8


def test_a_rate_is_checked_beside_the_next_ones(tmp_path: Path) -> None:
    search = Search.from_dict({**OPEN, "trials": 4})
    found = by_search(search, tmp_path / "search", 1)
    table = checked(search, found, 2, tmp_path / "checked", 1)
    rates = search.rate_grid()
    at = rates.index(found.objective)
    assert table["objective"].tolist() == rates[max(at - 1, 0) : at + 3]
    assert table["attainment"].is_monotonic_decreasing


def test_what_nothing_meets_is_said(tmp_path: Path) -> None:
    search = Search.from_dict({**CLOSED, "slo_tpot_s": 1e-6, "trials": 2})
    with pytest.raises(InputError, match="none meets it"):
        by_search(search, tmp_path, 1)
