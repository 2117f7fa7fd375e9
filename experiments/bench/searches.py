"""Whether a search finds what a grid finds, in how many simulations, and whether its result holds for other seeds.

Example: python -m experiments.bench.searches throughput --out results/throughput --cells 2000
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from engines.errors import InputError
from engines.storage.locks import locked
from experiments.search.config import OTHER_SEEDS, Search
from experiments.search.evaluate import Evaluator
from experiments.search.search import CHOSEN, finals, judge, plain, run_search
from experiments.sweep.store import ROWS, Results
from experiments.sweep.sweep import prediction
from experiments.sweep.table import half_width
from experiments.sweep.workers import Backend

MOST_POINTS = 200  # of a range, in a grid
CONFIDENCE = 0.95


class Result(NamedTuple):
    """chosen: the row of the best candidate. candidates, simulations: how many there were."""

    chosen: dict[str, Any]
    candidates: int
    simulations: int

    @property
    def objective(self) -> float:
        """What it reaches with the seeds of the final comparison, which chose no finalist."""
        return float(self.chosen["final_objective"])


def by_search(search: Search, folder: Path, jobs: int | None = None) -> Result:
    """Search, in a folder. Raises InputError if nothing meets the SLO."""
    found = run_search(search, folder, jobs=jobs)
    return Result(_chosen(found.candidates), len(found.candidates), len(found.rows))


def by_grid(search: Search, cells: int, folder: Path, jobs: int | None = None) -> Result:
    """Simulate a grid, and the best of it again as a search does with its finalists. Raises InputError likewise."""
    candidates = grid_of(search, cells)
    with locked(folder):
        evaluator = _evaluator(search, folder, jobs)
        table = finals(evaluator, pd.DataFrame(judge(evaluator, candidates)))
        rows = evaluator.table()
        Results(folder).finish({ROWS: rows})
    return Result(_chosen(table), len(candidates), len(rows))


def grid_of(search: Search, cells: int) -> list[dict[str, Any]]:
    """Return at least so many candidates of a search, or all: every choice, and evenly spaced values of ranges."""
    candidates: list[dict[str, Any]] = []
    for points in range(2, MOST_POINTS):
        places = np.linspace(0, 1 - 1e-9, points)
        axes = {"architecture": list(search.named())} | {
            name: draw.choice or list(dict.fromkeys(draw.values(places))) for name, draw in search.space.items()
        }
        candidates = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
        if len(candidates) >= cells:
            break
    return candidates


def checked(search: Search, result: Result, seeds: int, folder: Path, jobs: int | None = None) -> pd.DataFrame:
    """Simulate the chosen candidate with seeds that neither chose it nor the finalists.

    Returns one row per rate, around the one that was named (one row for a closed loop): `rate` or throughput,
    `attainment` (mean share of requests that meet the SLO), and half of its confidence interval.
    """
    candidate = {name: plain(result.chosen[name]) for name in ("architecture", *search.space)}
    named = int(result.chosen["step"]) if not search.rates else _step(search, result.objective)
    steps = [named] if not search.rates else range(max(named - 1, 0), min(named + 3, len(search.rate_grid())))
    first = search.seed + OTHER_SEEDS + search.final_repeats
    with locked(folder):
        evaluator = _evaluator(search, folder, jobs)
        rows = evaluator.rows([search.cell(candidate, step) for step in steps], range(first, first + seeds))
        Results(folder).finish({ROWS: rows})
    cells = rows.groupby("cell")
    met = cells["slo_attainment"] if search.has_slo else cells["finished"]
    half = half_width(met.std(), met.count(), CONFIDENCE)
    reached = cells["rate"].first() if search.rates else cells["throughput_tokens_per_s"].mean()
    return pd.DataFrame({"objective": reached, "attainment": met.mean() if search.has_slo else 1.0, "half": half})


def _step(search: Search, rate: float) -> int:
    return int(np.argmin(np.abs(np.array(search.rate_grid()) - rate)))


def _chosen(candidates: pd.DataFrame) -> dict[str, Any]:
    chosen = candidates[candidates["status"] == CHOSEN]
    if chosen.empty:
        raise InputError("slo", f"{len(candidates)} candidates", "none meets it; ask for less")
    return dict(chosen.iloc[0])


def _evaluator(search: Search, folder: Path, jobs: int | None) -> Evaluator:
    settings = prediction(search.profile, search.pair, search.extrapolate, search.max_context)
    return Evaluator(search, settings, Results(folder), jobs, Backend.PROCESSES)


def _said(candidate: Mapping[str, Any], search: Search) -> str:
    return ", ".join(f"{name} {candidate[name]}" for name in ("architecture", *search.space))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="TOML file of the search, or the name of a built-in one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--cells", type=int, default=0, help="also simulate a grid of at least so many candidates")
    parser.add_argument("--seeds", type=int, default=20, help="seeds to check the chosen candidate with (default 20)")
    parser.add_argument("--jobs", type=int, help="simulations at once")
    given = parser.parse_args()
    search = Search.load(given.config)
    unit = "requests/s" if search.rates else "tokens/s"
    results = {"search": by_search(search, given.out / "search", given.jobs)}
    if given.cells:
        results["grid"] = by_grid(search, given.cells, given.out / "grid", given.jobs)
    for name, result in results.items():
        print(f"{name}: {result.candidates:,} candidates, {result.simulations:,} simulations; "
              f"{result.objective:,.5g} {unit} with {_said(result.chosen, search)}", flush=True)  # fmt: skip
    if given.cells:
        found, best = results["search"], results["grid"]
        print(f"the search reaches {found.objective / best.objective:.1%} of the grid's best "
              f"in {found.simulations / best.simulations:.1%} of its simulations")  # fmt: skip
    for row in checked(search, results["search"], given.seeds, given.out / "checked", given.jobs).itertuples():
        print(f"{given.seeds} other seeds at {row.objective:,.5g} {unit}: {row.attainment:.1%} "
              f"(±{row.half:.1%}) of requests meet the SLO")  # fmt: skip


if __name__ == "__main__":
    main()
