"""Compare simulations with live runs, cell by cell and request by request.

The error is signed and relative, (simulated - live) / live, where each side is the mean over its repeats. The spread
of the repeats is (max - min) / |mean|. An error below the live spread is no larger than the differences between live
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from calibrate.profile import Profile
from engines.errors import InputError
from engines.record.metrics import PARTS, decompose, request_times, summary
from engines.record.run import Run
from engines.storage.files import replaced
from experiments.compare.comparable import Sides, by_cell, check_profile, differences, sides
from experiments.compare.identity import replayed_runs
from experiments.compare.solo_times import with_solo_times
from experiments.runner.cells import CELL_COLUMNS, Cell, cell_of
from sim.costs import CostModel

THROUGHPUT = "throughput_tokens_per_s"
METRIC_COLUMNS = [
    *CELL_COLUMNS, "metric", "live", "live_spread", "live_repeats", "simulated", "simulated_spread",
    "simulated_repeats", "difference", "error", "differs",
]  # fmt: skip
PAIRED_COLUMNS = [
    *CELL_COLUMNS, "run", "quantity", "requests", "live_mean_s", "bias_s", "bias", "mape", "pearson_r", "differs",
]  # fmt: skip
GRID = {
    "throughput": THROUGHPUT,
    "ttft_mean": "ttft_s.mean",
    "tpot_mean": "tpot_s.mean",
    "latency_mean": "latency_s.mean",
    "latency_median": "latency_s.median",
    "latency_p95": "latency_s.p95",
}


@dataclass
class Comparison:
    """The result of a comparison.

    metrics: one row per cell and metric (METRIC_COLUMNS; difference in the unit of the metric). paired: one row per
    replayed live run and quantity (PAIRED_COLUMNS). The column `differs` names the settings in which the simulation
    differs from the live run, such as "seed, slots". unmatched: cells that only one side has.
    """

    metrics: pd.DataFrame
    paired: pd.DataFrame
    unmatched: list[str] = field(default_factory=list)

    def grid(self) -> pd.DataFrame:
        """Return one row per cell with the column `differs` and, for each metric of GRID, the columns NAME_live,
        NAME_simulated, NAME_error, NAME_live_spread and NAME_simulated_spread."""
        values = ["live", "simulated", "error", "live_spread", "simulated_spread"]
        wide = self.metrics.pivot_table(index=CELL_COLUMNS, columns="metric", values=values, dropna=False)
        found = {
            f"{name}_{value}": wide.get((value, metric), np.nan) for name, metric in GRID.items() for value in values
        }
        differs = self.metrics.groupby(CELL_COLUMNS)["differs"].first()  # only existing cells
        return pd.DataFrame({**found, "differs": differs}, index=differs.index).sort_index().reset_index()

    @property
    def throughput_error(self) -> float:
        """The mean absolute relative error of the throughput over the cells."""
        return float(self.grid()["throughput_error"].abs().mean())

    def exceeding(self, tolerance: float) -> list[str]:
        """Return one line for each cell whose throughput error exceeds `tolerance` (a fraction)."""
        grid = self.grid()
        over = grid[grid["throughput_error"].abs() > tolerance]
        return [
            f"{Cell(*values)}: {error:+.1%}"
            for values, error in zip(
                over[CELL_COLUMNS].itertuples(index=False), over["throughput_error"], strict=True
            )
        ]

    def save(self, path: Path) -> list[Path]:
        """Write the metrics to `path` as CSV and any paired rows next to it as *_paired.csv."""
        tables = {path: self.metrics} | ({} if self.paired.empty else {paired_path(path): self.paired})
        for place, table in tables.items():
            with replaced(place) as beside:
                table.to_csv(beside, index=False, float_format="%.6g")
        return list(tables)


def paired_path(path: Path) -> Path:
    """Return the path of the paired rows, next to the metrics."""
    return path.with_name(f"{path.stem}_paired.csv")


def compare(lives: Sequence[Run], simulations: Sequence[Run], profile: Profile | None = None) -> Comparison:
    """Match live and simulated runs by cell and compare them.

    On either side, several runs of a cell are its repeats. A replay is also paired with its live run by request. It
    counts for the metrics of the cell only if the cell has no other simulation. profile: its solo times make
    contention a part of the live latencies.

    Raises InputError if the two sides share no cell, and for runs that cannot be compared
    (experiments.compare.comparable): of the wrong kind, of a different device, pair or data type, not repeats of one
    another, or a replay without its live run.
    """
    matched = sides(lives, simulations)
    if not matched:
        live, simulated = (_cells(by_cell(runs)) for runs in (lives, simulations))
        remedy = f"the two sides have no cell in common; live has {live}; simulated has {simulated}"
        raise InputError("compare", f"{len(lives)} live, {len(simulations)} simulated", remedy)
    replays = [run for run in simulations if "replays" in run.info]
    pairs = list(zip(replayed_runs(replays, lives), replays, strict=True))
    rows = [row for live, simulated in pairs for row in pair_by_request(live, simulated)]
    if profile is not None:
        costs = CostModel(profile, extrapolate=True)
        matched = [_explained(side, profile, costs) for side in matched]
    cells = {side.cell for side in matched}
    return Comparison(
        pd.concat([_metrics(side) for side in matched], ignore_index=True)[METRIC_COLUMNS],
        pd.DataFrame(rows, columns=PAIRED_COLUMNS),
        [
            f"{cell} ({name} only)"
            for name, runs in (("live", lives), ("simulated", simulations))
            for cell in by_cell(runs)
            if cell not in cells
        ],
    )


def spread(values: pd.DataFrame) -> pd.Series:
    """Return (max - min) / |mean| of each column; nan for fewer than two rows."""
    if len(values) < 2:
        return pd.Series(np.nan, index=values.columns)
    return _ratio(values.max() - values.min(), values.mean().abs())


def measures(run: Run) -> dict[str, float]:
    """Return `engines.record.metrics.summary` plus the mean of each part of the latency, as part.NAME_s."""
    parts = decompose(run)[PARTS].mean()
    return summary(run) | {f"part.{name}_s": float(seconds) for name, seconds in parts.items()}


def pair_by_request(live: Run, simulated: Run) -> list[dict[str, object]]:
    """Return one row for each of latency, TTFT and TPOT, over the requests that finished in both runs.

    bias_s: mean of simulated - live, in seconds. bias: bias_s over the live mean. mape: mean of
    |simulated - live| / live. pearson_r: nan if either side does not vary. differs: see Comparison. Raises InputError
    if the runs share no finished request.
    """
    times = request_times(live), request_times(simulated)
    both = times[0].merge(times[1], left_index=True, right_index=True, suffixes=(".live", ".simulated"))
    if both.empty:
        raise InputError("replays", live.name, f"no request of {simulated.name} finished in both runs")
    differs = ", ".join(differences(live, simulated))
    rows: list[dict[str, object]] = []
    for quantity in ("latency_s", "ttft_s", "tpot_s"):
        pair = both[[f"{quantity}.live", f"{quantity}.simulated"]].dropna().to_numpy(float)
        if not len(pair):
            continue
        measured, predicted = pair[:, 0], pair[:, 1]
        difference = predicted - measured
        rows.append(
            {
                **cell_of(live)._asdict(),
                "run": live.name,
                "quantity": quantity,
                "requests": len(pair),
                "live_mean_s": measured.mean(),
                "bias_s": difference.mean(),
                "bias": difference.mean() / measured.mean(),
                "mape": float(np.mean(np.abs(difference) / measured)),
                "pearson_r": _correlation(measured, predicted),
                "differs": differs,
            }
        )
    return rows


def _explained(side: Sides, profile: Profile, costs: CostModel) -> Sides:
    """Return the cell with the profile's solo times in its live runs.

    `differs` includes "profile" if a simulation used a profile of another date.
    """
    check_profile(profile, side.lives)
    others = {run.info.get("costs", {}).get("date") for run in side.simulations} - {profile.info["date"]}
    differs = (*side.differs, "profile") if others else side.differs
    return side._replace(lives=[with_solo_times(run, costs) for run in side.lives], differs=differs)


def _metrics(side: Sides) -> pd.DataFrame:
    live, simulated = (pd.DataFrame([measures(run) for run in runs]) for runs in (side.lives, side.simulations))
    # A lane or device that one side never used was busy for 0 s there, but its mean batch size is undefined.
    names = live.columns.union(simulated.columns, sort=False)
    idle = [name for name in names if name.startswith("lane_busy.") or ".device_" in name]
    table = pd.DataFrame(index=names.rename("metric"))
    for kind, values in (("live", live), ("simulated", simulated)):
        values = values.reindex(columns=names)
        values[idle] = values[idle].fillna(0.0)
        table[kind], table[f"{kind}_spread"] = values.mean(), spread(values)
        table[f"{kind}_repeats"] = len(values)
    table["difference"] = table["simulated"] - table["live"]
    table["error"] = _ratio(table["difference"], table["live"].abs())
    return table.reset_index().assign(differs=", ".join(side.differs), **side.cell._asdict())


def _ratio(numerator: pd.Series, denominator: pd.Series) -> pd.Series:
    """Divide. 0 / 0 is 0, since both sides agree; anything else over 0 is nan."""
    ratio = numerator / denominator.where(denominator > 0)
    return ratio.mask((denominator == 0) & (numerator == 0), 0.0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _cells(cells: dict[Cell, list[Run]]) -> str:
    return "; ".join(str(cell) for cell in cells) or "none"
