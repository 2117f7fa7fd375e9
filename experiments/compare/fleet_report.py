"""A readable table of the metrics of a fleet."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from experiments.compare.report import cells_table, results_console

COLUMNS = ("replica", "requests", "mean_in_system")
"""Columns by which a file of such metrics is known."""
_SHOWN = {
    "requests": ("requests", 1.0, 0), "rejected": ("rejected", 1.0, 0),
    "throughput_tokens_per_s": ("tokens/s", 1.0, 1), "ttft_s.mean": ("TTFT mean\n(ms)", 1e3, 1),
    "ttft_s.p95": ("TTFT P95\n(ms)", 1e3, 1), "tpot_s.mean": ("TPOT mean\n(ms)", 1e3, 1),
    "tpot_s.p95": ("TPOT P95\n(ms)", 1e3, 1), "latency_s.mean": ("latency\nmean (ms)", 1e3, 1),
    "mean_in_system": ("in system", 1.0, 2), "running_at_least_1": ("device\nbusy (%)", 100.0, 1),
}  # fmt: skip


def print_fleet(metrics: pd.DataFrame) -> None:
    """Print the metrics of sim.fleet.simulate_fleet, and Little's law."""
    results_console().print(fleet_table(metrics))


def fleet_table(metrics: pd.DataFrame) -> Table:
    """Return a row for the fleet and, if there are several, one per replica."""
    table = cells_table("replicas of the fleet", "replica", "requests")
    for heading, _, _ in list(_SHOWN.values())[1:]:
        table.add_column(heading, justify="right")
    table.columns[1].justify = "right"
    rows = metrics.to_dict("index")
    fleet = rows.pop("fleet")
    if len(rows) > 1:
        for name, row in rows.items():
            table.add_row(str(name), *_shown(row))
        table.add_section()
    table.add_row("fleet", *_shown(fleet), style="bold")
    table.caption = littles_law(fleet)
    return table


def littles_law(row: Mapping[Any, float]) -> str:
    """Return both sides of Little's law, each counted in its own way."""
    rate, latency_s = row["throughput_requests_per_s"], row["latency_s.mean"]
    return (
        f"Little's law: {row['mean_in_system']:.4g} requests in the system, counted over time; "
        f"{rate:.4g} per second x {latency_s:.4g} s = {rate * latency_s:.4g}"
    )


def _shown(row: Mapping[Any, float]) -> list[str]:
    return ["-" if math.isnan(row[n]) else f"{row[n] * unit:,.{digits}f}" for n, (_, unit, digits) in _SHOWN.items()]
