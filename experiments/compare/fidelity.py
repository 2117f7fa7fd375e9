"""How far replays and blind simulations are from live runs, over all cells, and whether that is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from engines.record.run import Run
from engines.storage.files import replaced
from experiments.compare.comparable import BLIND, REPLAY, SIMULATED, mode_of
from experiments.compare.compare import THROUGHPUT, Comparison, compare
from experiments.runner.cells import CELL_COLUMNS, Cell, cell_of

METRICS = {
    "throughput": THROUGHPUT, "TTFT": "ttft_s.mean", "TPOT": "tpot_s.mean", "latency": "latency_s.mean",
    "P50": "latency_s.median", "P95": "latency_s.p95", "P99": "latency_s.p99",
}  # fmt: skip
MAPE, CORRELATION = "MAPE", "r"


class Tolerance(NamedTuple):
    """Most mean absolute error over the cells, and most in the worst cell."""

    mean: float
    worst: float = float("inf")


FIDELITY: dict[str, dict[str, Tolerance]] = {
    REPLAY: {
        "throughput": Tolerance(0.015, 0.04), "TTFT": Tolerance(0.05, 0.12), "TPOT": Tolerance(0.02, 0.05),
        "latency": Tolerance(0.02, 0.05), "P95": Tolerance(0.03, 0.08), "P99": Tolerance(0.03, 0.08),
        MAPE: Tolerance(0.04),
    },
    BLIND: {
        "throughput": Tolerance(0.03), "TTFT": Tolerance(0.08), "TPOT": Tolerance(0.04), "latency": Tolerance(0.04),
        "P95": Tolerance(0.06), "P99": Tolerance(0.06),
    },
}  # fmt: skip
LEAST_CORRELATION = 0.98  # of the latencies of a replay, mean over the cells
TOLERANCES = {"fidelity": FIDELITY}
VERDICT_COLUMNS = ["mode", "metric", "mean", "most_mean", "worst", "most_worst", "worst_cell", "met"]


@dataclass
class Fidelity:
    """Errors by mode.

    cells: mode -> one row per cell (CELL_COLUMNS), with the columns METRIC (the error) and METRIC_spread (of the live
    repeats) for METRICS and, for replays, MAPE and r of the latency, request by request.
    """

    cells: dict[str, pd.DataFrame]

    def save(self, path: Path) -> Path:
        """Write one row per mode and cell, as CSV."""
        with replaced(path) as beside:
            table = pd.concat([cells.assign(mode=mode) for mode, cells in self.cells.items()])
            table[["mode", *(name for name in table if name != "mode")]].to_csv(
                beside, index=False, float_format="%.6g"
            )
        return path

    @staticmethod
    def of_table(table: pd.DataFrame) -> Fidelity:
        """Return what `save` wrote, from its table."""
        parts = table.groupby("mode", sort=False)
        return Fidelity(
            {str(mode): part.dropna(axis="columns", how="all").drop(columns="mode") for mode, part in parts}
        )

    def totals(self) -> pd.DataFrame:
        """Return the mean absolute error over the cells (of r: the mean) and the worst, by mode and metric."""
        rows = []
        for mode, cells in self.cells.items():
            names = [str(Cell(*values)) for values in cells[CELL_COLUMNS].itertuples(index=False)]
            for metric in (*METRICS, MAPE, CORRELATION):
                if metric in cells and cells[metric].notna().any():
                    values = cells[metric].abs() if metric != CORRELATION else cells[metric]
                    place = int(values.argmin() if metric == CORRELATION else values.argmax())
                    rows.append((mode, metric, values.mean(), values.iloc[place], names[place]))
        return pd.DataFrame(rows, columns=["mode", "metric", "mean", "worst", "worst_cell"])

    def verdicts(self, tolerances: dict[str, dict[str, Tolerance]]) -> pd.DataFrame:
        """Return the totals that have a tolerance, and whether they meet it (VERDICT_COLUMNS)."""
        rows = []
        for mode, metric, mean, worst, cell in self.totals().itertuples(index=False):
            limit = Tolerance(LEAST_CORRELATION) if metric == CORRELATION else tolerances.get(mode, {}).get(metric)
            if limit is not None:
                met = mean >= limit.mean if metric == CORRELATION else mean <= limit.mean and worst <= limit.worst
                rows.append((mode, metric, mean, limit.mean, worst, limit.worst, cell, met))
        return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def fidelity_path(path: Path) -> Path:
    """Return the path of the errors by mode, next to the metrics."""
    return path.with_name(f"{path.stem}_fidelity.csv")


def fidelity(lives: Sequence[Run], simulations: Sequence[Run]) -> Fidelity:
    """Return the errors of the replays and of the blind simulations.

    Simulations with the live acceptance that are not called replays count as replays of cells that have none. Raises
    InputError as experiments.compare.compare does.
    """
    modes: dict[str, list[Run]] = {REPLAY: [], BLIND: []}
    for run in simulations:
        if mode_of(run) != SIMULATED:
            modes[mode_of(run)].append(run)
    replayed = {cell_of(run) for run in modes[REPLAY]}
    modes[REPLAY] += [run for run in simulations if mode_of(run) == SIMULATED and cell_of(run) not in replayed]
    return Fidelity({mode: _cells(compare(lives, runs)) for mode, runs in modes.items() if runs})


def _cells(comparison: Comparison) -> pd.DataFrame:
    wide = comparison.metrics.pivot_table(
        index=CELL_COLUMNS, columns="metric", values=["error", "live_spread"], dropna=False
    )
    found = {name: wide[("error", metric)] for name, metric in METRICS.items()}
    found |= {f"{name}_spread": wide[("live_spread", metric)] for name, metric in METRICS.items()}
    table = pd.DataFrame(found).dropna(subset="throughput")
    latency = comparison.paired[comparison.paired["quantity"] == "latency_s"]
    if len(latency):
        paired = latency.groupby(CELL_COLUMNS)[["mape", "pearson_r"]].mean()
        table = table.join(paired.rename(columns={"mape": MAPE, "pearson_r": CORRELATION}))
    return table.reset_index()
