"""The tables of a sweep: a row per cell and repeat, and their means with confidence intervals per cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.sweep.cells import CellSettings
from experiments.sweep.simulation import in_order

FINISHED, FAILED = "finished", "failed"
PLACE = ["cell", "repeat", "seed", "fingerprint"]
STATUS = ["status", "error"]
NAMES = list(CellSettings.model_fields)
WHOLE = ["prefill_limit", "decode_limit", "workers", "slots", "permits", "hybrid", "concurrency", "requests",
         "requests_per_client", "replicas"]  # fmt: skip
DECIMAL = ["rate", "cv", "temperature", "slo_ttft_s", "slo_tpot_s"]


def metrics_of(table: pd.DataFrame) -> list[str]:
    """Return the columns of metrics of a table of rows."""
    return [name for name in map(str, table) if name not in (*PLACE, *STATUS, *NAMES)]


def rows_table(places: pd.DataFrame, settings: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Return one row per cell and repeat: the columns PLACE and STATUS, every setting (NAMES), then the metrics.

    places: the columns PLACE of every row, in order. settings: `cell` and NAMES, one row per cell. results: `error`
    and metrics, by fingerprint. Rows without a result are left out.
    """
    table = places[places["fingerprint"].isin(results.index)].merge(settings, on="cell", how="left")
    found = results.loc[table["fingerprint"]].reset_index(drop=True)
    table["error"] = found["error"].fillna("")
    table["status"] = np.where(table["error"] == "", FINISHED, FAILED)
    kinds = dict.fromkeys((*NAMES, *STATUS, "fingerprint"), "string")
    kinds |= dict.fromkeys(WHOLE, "Int64") | dict.fromkeys(DECIMAL, "float64")
    metrics = found[in_order(name for name in map(str, found) if name != "error" and found[name].notna().any())]
    return pd.concat([table[[*PLACE, *STATUS, *NAMES]].astype(kinds), metrics.astype(float)], axis="columns")


def summary_table(rows: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Return one row per cell: every setting, how many repeats finished and failed, then three columns per metric.

    These are its mean over the finished repeats, and the bounds `.low` and `.high` of the confidence interval of the
    mean (Student's t). With one repeat, or if a metric is undefined in all but one, the bounds are nan. The intervals
    of different cells are not independent, since all meet the same loads: compare cells by `difference`.
    """
    names, finished = metrics_of(rows), rows["status"] == FINISHED
    cells = rows.groupby("cell")
    out = cells[NAMES].first()
    out["finished_repeats"] = finished.groupby(rows["cell"]).sum()
    out["failed_repeats"] = (~finished).groupby(rows["cell"]).sum()
    out["error"] = rows["error"].where(~finished).groupby(rows["cell"]).first().fillna("")
    values = rows.loc[finished, names].to_numpy(float)  # in one block: pandas rounds sums by how blocks lie in memory
    grouped = pd.DataFrame(values, columns=names).groupby(rows.loc[finished, "cell"].to_numpy())
    mean, half = grouped.mean(), half_width(grouped.std(), grouped.count(), confidence)
    parts: dict[str, pd.Series] = {}
    for name in names:
        parts |= {name: mean[name], f"{name}.low": mean[name] - half[name], f"{name}.high": mean[name] + half[name]}
    return out.join(pd.DataFrame(parts)).reset_index()


def half_width(deviation: Any, count: Any, confidence: float) -> Any:
    """Return half the width of the confidence interval of a mean: of `count` samples with this standard deviation."""
    from scipy.special import stdtrit  # scipy.stats.t has the same, but takes half a second to import

    freedom = count - 1
    return stdtrit(freedom.where(freedom > 0), (1 + confidence) / 2) * deviation / np.sqrt(count)


def difference(rows: pd.DataFrame, metric: str, cell: int, other: int, confidence: float = 0.95) -> tuple[float, ...]:
    """Return the mean of (cell - other) over repeats, and the bounds of its confidence interval.

    Repeats are paired, since both cells meet the same load in each; this is narrower than the intervals of the two.
    """
    by_repeat = rows[rows["status"] == FINISHED].set_index(["cell", "repeat"])[metric]
    paired = (by_repeat.loc[cell] - by_repeat.loc[other]).dropna()
    mean = float(paired.mean())
    half = float(half_width(paired.std(), pd.Series([len(paired)]), confidence)[0])
    return mean, mean - half, mean + half
