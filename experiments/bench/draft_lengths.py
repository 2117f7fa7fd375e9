"""What a draft length that follows the load is worth, simulated: against the best fixed one of each load.

The sweeps of SWEEPS run in folders of --out; run the program again to go on with them. It prints the
throughput of every draft length at the loads SHOWN, and the least, mean and most difference over all loads. These
are the differences of the mean over seeds to that of the best fixed draft length for the same load: in throughput or,
for open loops, in the inverse of the mean latency.

Example: python -m experiments.bench.draft_lengths --profile results/h100/speculation/profile --out draft-lengths
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from experiments.compare.report import results_console
from experiments.sweep.config import Sweep
from experiments.sweep.sweep import run_sweep

FIXED, FOLLOWING, OTHERS = ("0", "2", "4", "8"), "load0-8", ("2-8", "load1-8")
CLIENTS, ALPHAS = (1, 2, 4, 8, 16, 32, 64), (0.3, 0.5, 0.65, 0.8, 0.9)
SHOWN = {"concurrency": (1, 4, 16, 64), "acceptance": (0.8, 0.5)}
SHARED: Mapping[str, Any] = {
    "architectures": ["pd", "pdv"],
    "grid": {"prefill_limit": [4], "decode_limit": [64], "slots": [64], "acceptance": list(ALPHAS)},
    "k": [*FIXED, FOLLOWING],
    "workload": {"prompt_tokens": "128", "output_tokens": "128"},
}
LOOP = {"requests": 16, "requests_per_client": 5}
SWEEPS: Mapping[str, Mapping[str, Any]] = {
    "closed": {"concurrencies": list(CLIENTS), "k": [*FIXED, *OTHERS, FOLLOWING], "workload": LOOP},
    "open": {
        "zip": [{"rate": [20.0, 10.0, 30.0], "rate_steps": [[1.0, 3.0], [1.0, 3.0], [1.0, 0.5]]}],
        "workload": {"requests": 240},
    },
    "long": {"concurrencies": [16, 64], "workload": {**LOOP, "output_tokens": "256"}},
}
LOADS = {
    "closed": "1 to 64 clients",
    "open": "20 to 60, 10 to 30 and 30 to 15 requests per second",
    "long": "16 and 64 clients, 256 output tokens",
}
WORTH_NAMING = 0.01  # of a loss
LOAD = ["architecture", "acceptance", "concurrency", "rate"]


def sweep_of(name: str, profile: Path, repeats: int) -> Sweep:
    """Return one of SWEEPS, with what all of them share."""
    own = SWEEPS[name]
    asked = {**SHARED, **own, "workload": {**SHARED["workload"], **own["workload"]}}
    return Sweep.from_dict({**asked, "name": name, "profile": str(profile), "repeats": repeats, "seed": 1})


def speeds(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the speed of every draft length, one row per load, with the column `gain`.

    cells: the summary of a sweep. speed: tokens per second or, for open loops, requests over the sum of their
    latencies. gain: FOLLOWING over the best of FIXED, less 1.
    """
    is_open = cells["rate"].notna()
    cells = cells.assign(speed=(1 / cells["latency_s.mean"]).where(is_open, cells["throughput_tokens_per_s"]))
    wide = cells.pivot(index=LOAD, columns="k", values="speed")
    return wide.assign(gain=wide[FOLLOWING] / wide[list(FIXED)].max(axis=1) - 1)


def shown_table(closed: pd.DataFrame) -> Table:
    """Return the speeds at the loads SHOWN."""
    lengths = [*FIXED, *OTHERS, FOLLOWING]
    table = Table("layout", "alpha", "clients", *lengths, "gain", title="tokens per second, by draft length")
    wide = speeds(closed).reset_index().astype({"acceptance": float})
    wide = wide[wide["concurrency"].isin(SHOWN["concurrency"]) & wide["acceptance"].isin(SHOWN["acceptance"])]
    for row in wide.sort_values(["architecture", "acceptance"], ascending=[True, False], kind="stable").to_dict(
        "records"
    ):
        numbers = [f"{row[k]:,.0f}" for k in lengths]
        table.add_row(
            row["architecture"], f"{row['acceptance']:g}", f"{row['concurrency']}", *numbers, f"{row['gain']:+.1%}"
        )
    return table


def gains_table(summaries: Mapping[str, pd.DataFrame]) -> Table:
    """Return the least, mean and most gain over the loads of each sweep, by architecture."""
    table = Table("loads", "cells", "least", "mean", "most", title=f"{FOLLOWING} against the best fixed draft length")
    lost: list[str] = []
    for name, cells in summaries.items():
        wide = speeds(cells)
        lost += wide.loc[wide["gain"] < -WORTH_NAMING, list(FIXED)].idxmax(axis=1).astype(str).tolist()
        for layout, gain in wide["gain"].groupby("architecture", sort=False):
            found = (gain.min(), gain.mean(), gain.max())
            table.add_row(f"{layout}, {LOADS[name]}", f"{len(gain)}", *(f"{value:+.1%}" for value in found))
    best = ", ".join(f"k = {k} in {lost.count(k)}" for k in FIXED if k in lost)
    table.caption = f"best fixed where {FOLLOWING} loses more than {WORTH_NAMING:.0%}: {best or 'nowhere'}"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True, help="folder of the profile")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sweeps")
    parser.add_argument("--repeats", type=int, default=3, help="seeds of each load (default 3)")
    given = parser.parse_args()
    summaries = {
        name: run_sweep(sweep_of(name, given.profile.resolve(), given.repeats), given.out / name).summary
        for name in SWEEPS
    }
    results_console().print(shown_table(summaries["closed"]), gains_table(summaries))


if __name__ == "__main__":
    main()
