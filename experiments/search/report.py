"""What a search prints: the finalists, and why the others were rejected."""

from __future__ import annotations

import math

import pandas as pd
from rich import box
from rich.table import Table

from experiments.search.config import Search
from experiments.sweep.cells import DEFAULT_REQUESTS

MOST_SHOWN = 8
HIDDEN_OVERLOAD = 0.05
"""A note is printed if an overload of more than this could be missed."""


def candidates_report(search: Search, candidates: pd.DataFrame) -> Table:
    """Return the finalists, best first, with their results on other seeds; without any, the best of the others.

    Its numbers are at the highest rate that meets the SLO, or for the clients of a closed loop.
    """
    finalists = candidates[candidates["final_objective"].notna()]
    shown = (finalists if len(finalists) else candidates)[:MOST_SHOWN]
    names = [name for name in ("architecture", *search.space) if candidates[name].nunique() > 1] or ["architecture"]
    unit = "rate\n(/s)" if search.rates else "tokens\nper s"
    at = ", at their highest rate within the SLO" if search.rates else ""
    table = Table(title=f"{search.name}: {len(candidates)} candidates{at}", box=box.SIMPLE_HEAD, title_justify="left",
                  title_style="bold")  # fmt: skip
    for name in names:
        table.add_column(name.replace("_", "\n"), no_wrap=True)
    for heading in (unit, "other\nseeds", "SLO\nmet", "TTFT\nP95 (ms)", "TPOT\nP95 (ms)", "P of\nbest"):
        table.add_column(heading, justify="right")
    for _, row in shown.iterrows():
        numbers = [
            (row["objective"], "{:,.4g}"), (row["final_objective"], "{:,.4g}"),
            (row["final_attainment"], "{:.1%}"),
            (1e3 * row["ttft_s.p95"], "{:,.0f}"), (1e3 * row["tpot_s.p95"], "{:,.2f}"),
            (row["probability_best"], "{:.2f}"),
        ]  # fmt: skip
        texts = ["" if math.isnan(value) else form.format(value) for value, form in numbers]
        table.add_row(*(str(row[name]) for name in names), *texts)
    return table


def rejections(candidates: pd.DataFrame) -> list[str]:
    """Return one line per kind of rejection, with how many candidates it met."""
    others = candidates[~candidates["status"].isin(["chosen"])]
    missed = others["reason"].str.contains("meet the SLO").sum()
    failed = (others["status"] == "failed").sum()
    counts = {
        "miss the SLO": missed,
        "failed": failed,
        "are worse than the best one": len(others) - missed - failed,
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return [f"{said}; see the column reason"] if said else []


def notes(search: Search, candidates: pd.DataFrame) -> list[str]:
    """Return a line if the requests arrive within so short a time that an overload could be missed.

    At a rate that is too high by a fraction x, the last of the requests, which arrive within t seconds, waits for
    about x * t. So an overload of up to (TTFT objective) / t meets the objective.
    """
    chosen = candidates[candidates["status"] == "chosen"]
    if search.rates is None or search.slo_ttft_s is None or chosen.empty:
        return []
    requests, rate = search.workload.requests or DEFAULT_REQUESTS, float(chosen["final_objective"].iloc[0])
    hidden = search.slo_ttft_s * rate / requests
    if hidden <= HIDDEN_OVERLOAD:
        return []
    enough = math.ceil(hidden / HIDDEN_OVERLOAD * requests)
    return [
        f"{requests} requests arrive within {requests / rate:.1f} s: an overload of up to {hidden:.0%} still meets "
        f"the TTFT objective; give {enough:,} requests"
    ]
