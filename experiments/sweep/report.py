"""What a sweep prints: the best cells, what lies beyond the profile, and what failed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.table import Table

from experiments.sweep.config import Sweep

MOST_SHOWN = 12
MOST_ERRORS = 5
GOODPUT, THROUGHPUT = "goodput_requests_per_s", "throughput_tokens_per_s"
COLUMNS = {
    THROUGHPUT: ("tokens/s", 1.0), GOODPUT: ("goodput\n(requests/s)", 1.0), "slo_attainment": ("SLO met\n(%)", 100.0),
    "ttft_s.p95": ("TTFT P95\n(ms)", 1e3), "tpot_s.p95": ("TPOT P95\n(ms)", 1e3),
    "beyond_profile_share": ("beyond the\nprofile (%)", 100.0),
}  # fmt: skip
"""Headings of the table of the best cells, and the factors for their units."""


def summary_report(sweep: Sweep, summary: pd.DataFrame) -> Table:
    """Return the cells with the highest goodput or, without an objective, throughput."""
    axes = sweep.varying() or ["architecture"]
    ranked = GOODPUT if GOODPUT in summary else THROUGHPUT
    columns = {name: about for name, about in COLUMNS.items() if name in summary and (summary[name] != 0).any()}
    shown = summary.nlargest(MOST_SHOWN, ranked) if ranked in summary else summary[:0]
    title = f"{sweep.name}: {len(shown)} of {len(summary)} cells, by {ranked.split('_')[0]}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    if f"{ranked}.high" in shown and (shown[f"{ranked}.high"] > shown[ranked]).any():
        table.caption = f"±: half of the {sweep.confidence:.0%} confidence interval of the mean"
    for name in ("cell", *axes):
        table.add_column(name.replace("_", " "))
    for heading, _ in columns.values():
        table.add_column(heading, justify="right")
    for _, row in shown.iterrows():
        texts = [str(row[name]) for name in ("cell", *axes)]
        table.add_row(*texts, *(_number(row, name, unit, name == ranked) for name, (_, unit) in columns.items()))
    return table


def _number(row: pd.Series, name: str, unit: float, with_interval: bool) -> str:
    mean, half = row[name] * unit, (row[f"{name}.high"] - row[name]) * unit
    if math.isnan(mean):
        return ""
    digits = 2 if abs(mean) < 100 else 0
    return f"{mean:,.{digits}f} ±{half:,.{digits}f}" if with_interval and half > 0 else f"{mean:,.{digits}f}"


def notes(rows: pd.DataFrame) -> Sequence[str]:
    """Return a line about what lies beyond the profile, if anything does."""
    beyond = rows.get("beyond_profile", pd.Series(dtype=float)) > 0
    if not beyond.any():
        return []
    worst = rows.loc[beyond, "beyond_profile_share"].max()
    return [f"{beyond.sum()} of {len(rows)} rows go beyond the profile, with up to {worst:.1%} of their segments "
            "(column beyond_profile)"]  # fmt: skip


def failures(summary: pd.DataFrame) -> Sequence[str]:
    """Return one line per different error, at most MOST_ERRORS, with the number of cells and the first of them."""
    failed = summary[summary["failed_repeats"] > 0]
    groups = failed.groupby("error", sort=False)["cell"].agg(["size", "first"])
    found = groups.itertuples(name=None)
    lines = [f"failed: {count} cells, first cell {first}: {error}" for error, count, first in found]
    more = len(lines) - MOST_ERRORS
    return [*lines[:MOST_ERRORS], *([f"{more} more errors; see the column error"] if more > 0 else [])]
