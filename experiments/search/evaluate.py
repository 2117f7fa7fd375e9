"""Simulate candidates, and find the highest rate at which each meets the SLO."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.runner.predict import Prediction
from experiments.search.config import Search
from experiments.sweep.cells import Cell
from experiments.sweep.simulation import Row
from experiments.sweep.store import Results
from experiments.sweep.sweep import Simulations, columns_of, places_of
from experiments.sweep.table import FAILED, PLACE, rows_table
from experiments.sweep.workers import results

Chosen = Mapping[str, Any]
"""A candidate: `architecture` by name, and a value for every setting of the space."""


class Evaluator:
    """Simulates cells, unless the store has their results already: a search that was stopped goes on by beginning
    again."""

    def __init__(self, search: Search, settings: Prediction, store: Results, jobs: int | None, backend: str) -> None:
        self.search = search
        self._settings, self._store, self._jobs, self._backend = settings, store, jobs, backend
        known = store.load()
        kept = known[known["error"] == ""].reset_index()
        self._results: dict[str, Row] = {str(row["fingerprint"]): dict(row) for _, row in kept.iterrows()}
        self._asked: dict[str, tuple[Cell, int]] = {}  # cell and seed by fingerprint
        self.simulations = 0

    def rows(self, cells: Sequence[Cell], seeds: Sequence[int]) -> pd.DataFrame:
        """Return the rows of cells, numbered from 1, for these seeds (experiments.sweep.table.rows_table)."""
        places = places_of(cells, self._settings, seeds)
        missing = Simulations(cells, places, self._results.keys(), self._settings.acceptance)
        self.simulations += len(missing)
        try:
            for rows, _ in results(missing, self._settings, self._jobs, self._backend) if len(missing) else ():
                self._store.add(rows)
                self._results |= {row["fingerprint"]: row for row in rows}
        finally:
            self._store.flush()
        for number, _, seed, digest in places.itertuples(index=False):
            self._asked[digest] = cells[number - 1], seed
        return self._table(cells, places)

    def table(self) -> pd.DataFrame:
        """Return all rows that this search asked for, cells in order of the first time."""
        cells = {cell.digest: cell for cell, _ in self._asked.values()}
        numbers = {digest: number for number, digest in enumerate(cells, 1)}
        rows = [(numbers[cell.digest], 0, seed, digest) for digest, (cell, seed) in self._asked.items()]
        places = pd.DataFrame(rows, columns=PLACE).sort_values(["cell", "seed"], ignore_index=True)
        places["repeat"] = places.groupby("cell").cumcount() + 1
        return self._table(list(cells.values()), places)

    def _table(self, cells: Sequence[Cell], places: pd.DataFrame) -> pd.DataFrame:
        found = pd.DataFrame([self._results[digest] for digest in places["fingerprint"]]).set_index("fingerprint")
        return rows_table(places, columns_of(cells, self._settings.acceptance), found[~found.index.duplicated()])

    def capacities(self, candidates: Sequence[Chosen], seeds: Sequence[int]) -> list[int]:
        """Return the highest step of the rate grid at which each candidate meets the SLO, -1 for none.

        Bisection: a candidate that meets the SLO at a rate is taken to meet it below. Candidates advance together, so
        that all cores are busy.
        """
        steps = len(self.search.rate_grid())
        return bisected(len(candidates), steps, lambda asked: self._meet(candidates, asked, seeds))

    def _meet(self, candidates: Sequence[Chosen], asked: Mapping[int, int], seeds: Sequence[int]) -> dict[int, bool]:
        cells = [self.search.cell(candidates[index], step) for index, step in asked.items()]
        rows = self.rows(cells, seeds)
        good = rows.groupby("cell")["slo_attainment"].mean() if "slo_attainment" in rows else pd.Series(dtype=float)
        good = good.where(~(rows["status"] == FAILED).groupby(rows["cell"]).any(), 0.0)
        return {index: good.get(number, 0.0) >= self.search.slo_share for number, index in enumerate(asked, 1)}


def bisected(count: int, steps: int, meets: Callable[[Mapping[int, int]], Mapping[int, bool]]) -> list[int]:
    """Return the highest step below `steps` that each of `count` items meets, -1 for none.

    meets: tells for item -> step whether the item meets it.
    """
    low, high = [-1] * count, [steps] * count
    while asked := {i: (low[i] + high[i]) // 2 for i in range(count) if high[i] - low[i] > 1}:
        for index, met in meets(asked).items():
            (low if met else high)[index] = asked[index]
    return low
