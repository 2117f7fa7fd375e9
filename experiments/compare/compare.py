"""How far a simulation is from the live engine, cell by cell and request by request.

The signed relative error is (simulated - live) / live, with live the mean over the cell's repeats. The spread
says how far the repeats are from each other, (max - min) / |mean|: an error below the spread is one that the
live engine makes against itself.
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
    *CELL_COLUMNS, "metric", "live", "spread", "repeats", "simulated", "difference", "error", "differs",
]  # fmt: skip
PAIRED_COLUMNS = [
    *CELL_COLUMNS, "run", "quantity", "requests", "live_mean_s", "bias_s", "bias", "mape", "pearson_r", "differs",
]  # fmt: skip


@dataclass
class Comparison:
    """metrics: one row a cell and metric (METRIC_COLUMNS; difference in the metric's own unit).
    paired: one row a replayed live run and quantity (PAIRED_COLUMNS). In both, differs names the settings in which
    the simulation is not what the live run was, "seed, slots" say; empty where it is the same. unmatched: cells only
    one side has."""

    metrics: pd.DataFrame
    paired: pd.DataFrame
    unmatched: list[str] = field(default_factory=list)

    def grid(self) -> pd.DataFrame:
        """One row a cell: live and simulated throughput with error and spread, and the errors of the latency's
        median and P95, of the mean TTFT and of the mean TPOT; and in which settings the two differ."""
        wide = self.metrics.pivot_table(
            index=CELL_COLUMNS, columns="metric", values=["live", "simulated", "error", "spread"], dropna=False
        )
        columns = {
            "throughput_live": ("live", THROUGHPUT),
            "throughput_simulated": ("simulated", THROUGHPUT),
            "throughput_error": ("error", THROUGHPUT),
            "throughput_spread": ("spread", THROUGHPUT),
            "latency_median_error": ("error", "latency_s.median"),
            "latency_p95_error": ("error", "latency_s.p95"),
            "latency_spread": ("spread", "latency_s.mean"),
            "ttft_mean_error": ("error", "ttft_s.mean"),
            "tpot_mean_error": ("error", "tpot_s.mean"),
        }
        found = {name: wide.get(key, np.nan) for name, key in columns.items()}
        found["differs"] = self.metrics.groupby(CELL_COLUMNS)["differs"].first()
        return pd.DataFrame(found, index=wide.index).sort_index().reset_index()

    @property
    def throughput_error(self) -> float:
        """Mean absolute relative error of the throughput over the cells."""
        return float(self.grid()["throughput_error"].abs().mean())

    def exceeding(self, tolerance: float) -> list[str]:
        """The cells whose throughput error is larger than `tolerance` (a fraction), in words."""
        grid = self.grid()
        over = grid[grid["throughput_error"].abs() > tolerance]
        return [
            f"{Cell(*values)}: {error:+.1%}"
            for values, error in zip(
                over[CELL_COLUMNS].itertuples(index=False), over["throughput_error"], strict=True
            )
        ]

    def save(self, path: Path) -> list[Path]:
        """Write the metrics as CSV to `path` and, if there are any, the paired rows beside it as *_paired.csv."""
        tables = {path: self.metrics} | ({} if self.paired.empty else {paired_path(path): self.paired})
        for place, table in tables.items():
            with replaced(place) as beside:
                table.to_csv(beside, index=False, float_format="%.6g")
        return list(tables)


def paired_path(path: Path) -> Path:
    """Where the paired rows go, beside the metrics."""
    return path.with_name(f"{path.stem}_paired.csv")


def compare(lives: Sequence[Run], simulations: Sequence[Run], profile: Profile | None = None) -> Comparison:
    """Match live and simulated runs by cell.

    Several live runs of a cell are its repeats. A simulation whose info says that it `replays` a live run is paired
    with that one by request as well; the cell's own numbers come from simulations that replay nothing, where there
    are any, since a closed loop has to be simulated as one. profile: whose solo times make contention a part of the
    live latencies.

    Raises InputError when no cell is on both sides, and for what means nothing side by side
    (experiments.compare.comparable): runs of the wrong kind, of another device, pair or type, that are no repeats
    of one another, or a replay whose live run is not there.
    """
    matched = sides(lives, simulations)
    if not matched:
        live, simulated = (_cells(by_cell(runs)) for runs in (lives, simulations))
        remedy = f"no cell is on both sides; live has {live}; simulated has {simulated}"
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
    """(max - min) / |mean| over the rows, column by column; nan for fewer than two rows."""
    if len(values) < 2:
        return pd.Series(np.nan, index=values.columns)
    return _ratio(values.max() - values.min(), values.mean().abs())


def measures(run: Run) -> dict[str, float]:
    """`engines.record.metrics.summary` plus the mean of each part of the latency, as part.NAME_s."""
    parts = decompose(run)[PARTS].mean()
    return summary(run) | {f"part.{name}_s": float(seconds) for name, seconds in parts.items()}


def pair_by_request(live: Run, simulated: Run) -> list[dict[str, object]]:
    """One row for each of latency, TTFT and TPOT over the requests that finished in both runs.

    bias_s: mean of simulated - live, seconds; bias: the same over the live mean. mape: mean of
    |simulated - live| / live. pearson_r: nan where either side does not vary. differs: as in a Comparison.
    Raises InputError if the runs share no finished request.
    """
    times = request_times(live), request_times(simulated)
    both = times[0].merge(times[1], left_index=True, right_index=True, suffixes=(".live", ".simulated"))
    if both.empty:
        raise InputError("replays", live.name, f"no request of {simulated.name} finished in it too")
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
    """The cell with the profile's solo times in its live runs. What was simulated from a profile of another date
    differs in it."""
    check_profile(profile, side.lives)
    others = {run.info.get("costs", {}).get("date") for run in side.simulations} - {profile.info["date"]}
    differs = (*side.differs, "profile") if others else side.differs
    return side._replace(lives=[with_solo_times(run, costs) for run in side.lives], differs=differs)


def _metrics(side: Sides) -> pd.DataFrame:
    live = pd.DataFrame([measures(run) for run in side.lives])
    simulated = pd.DataFrame([measures(run) for run in side.simulations]).mean()
    # A lane or device that one side never used was busy for 0 s there; its mean batch size is not defined.
    names = live.columns.union(simulated.index, sort=False)
    idle = [name for name in names if name.startswith("lane_busy.") or ".device_" in name]
    live, simulated = live.reindex(columns=names), simulated.reindex(names)
    live[idle], simulated[idle] = live[idle].fillna(0.0), simulated[idle].fillna(0.0)
    table = pd.DataFrame({"live": live.mean(), "spread": spread(live), "simulated": simulated})
    table["difference"] = table["simulated"] - table["live"]
    table["error"] = _ratio(table["difference"], table["live"].abs())
    table["repeats"] = len(side.lives)
    table["differs"] = ", ".join(side.differs)
    return table.rename_axis("metric").reset_index().assign(**side.cell._asdict())


def _ratio(numerator: pd.Series, denominator: pd.Series) -> pd.Series:
    """0 / 0 is 0 (both sides agree on nothing); anything else over 0 has no meaning as a share."""
    ratio = numerator / denominator.where(denominator > 0)
    return ratio.mask((denominator == 0) & (numerator == 0), 0.0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _cells(cells: dict[Cell, list[Run]]) -> str:
    return "; ".join(str(cell) for cell in cells) or "none"
