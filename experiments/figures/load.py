"""Throughput and latency over the load: live points, simulated lines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.lines import Line2D

from engines.record.metrics import summary
from engines.record.run import Run
from experiments.compare.comparable import own_of
from experiments.figures import style
from experiments.runner.cells import CELL_COLUMNS, cell_of

PANELS = {
    "throughput_tokens_per_s": "throughput (tokens/s)",
    "latency_s.median": "median latency (s)",
    "latency_s.p95": "P95 latency (s)",
}
LATENCIES = [name for name in PANELS if name.startswith("latency")]
LOG_FROM = 20.0
"""Latencies are drawn on a logarithmic axis if the largest is more than this many times the smallest."""
LOADS = {
    "concurrency": "concurrency (clients)",
    "rate": "arrival rate (requests/s)",
    "trace": "length of the trace (requests)",
}


@style.themed
def load_curves(lives: Sequence[Run], simulations: Sequence[Run], folder: Path, name: str = "load") -> list[Path]:
    """Draw PANELS over the most frequent kind of load, with one look per architecture.

    If an architecture has several draft lengths, there is a row of panels per architecture, and a look per length.
    Live runs are markers at the mean of the repeats, with a bar from the smallest to the largest. Simulated runs are
    a line through the means, with a band, or a tick where there is one load only. Replays and blind simulations are
    drawn only if there are no others.
    """
    simulations = own_of(simulations)
    live, simulated = _table(lives), _table(simulations)
    both = pd.concat([live, simulated])
    load = both["load"].mode()[0]
    by_length = both.groupby("architecture")["draft_length"].nunique().max() > 1
    rows = list(style.architecture_looks(both["architecture"])) if by_length else [""]
    column = "draft_length" if by_length else "architecture"
    looks = style.architecture_looks(both[column])
    levels = sorted(both.loc[both["load"] == load, "level"].unique())
    height = 2.2 + 0.15 * max(0, math.ceil(len(looks) / 4) - 1)
    figure, axes = style.canvas(len(PANELS), len(rows), height=height)
    places = itertools.product(zip(rows, axes, strict=True), enumerate(PANELS.items()))
    for (row, panels), (place, (metric, label_of)) in places:
        panel, both_here = panels[place], _of(both, row)
        for series, look in looks.items():
            line = _series(_of(simulated, row), column, series, load, metric)
            if len(line):
                alone = "_" if len(line) == 1 else ""
                panel.plot(
                    line.index, line["mean"], look.line, marker=alone, markersize=9, color=look.colour, zorder=4
                )
                panel.fill_between(line.index, line["min"], line["max"], color=look.colour, alpha=0.2, linewidth=0)
            points = _series(_of(live, row), column, series, load, metric)
            if len(points):
                bars = [points["mean"] - points["min"], points["max"] - points["mean"]]
                panel.errorbar(
                    points.index, points["mean"], yerr=bars, fmt=look.marker, markersize=4, elinewidth=1,
                    capsize=2.5, capthick=1, color=look.colour, markeredgecolor="white",
                    markeredgewidth=0.5, zorder=3,
                )  # fmt: skip
        panel.set(xlabel=LOADS[load], ylabel=label_of, title=style.shown(row))
        values = both_here.loc[both_here["load"] == load, metric].dropna()
        if metric in LATENCIES and (values > 0).all() and values.max() > LOG_FROM * values.min():
            panel.set_yscale("log")
            panel.yaxis.set_major_formatter("{x:g}")
        else:
            panel.set_ylim(bottom=0)
        style.level_axis(panel, levels)
    entries = {
        f"k = {name}" if by_length else style.shown(name): Line2D(
            [], [], color=look.colour, linestyle=look.line,  # type: ignore[arg-type]
            marker=look.marker, markersize=4, markeredgecolor="white",
            markeredgewidth=0.5,
        )
        for name, look in looks.items()
    }  # fmt: skip
    style.legend_above(figure, entries, columns=len(looks))
    note = "markers: live, bars from the smallest to the largest repeat; lines and bands: simulated, likewise"
    return style.save(figure, folder, name, f"{note} · {style.source([*lives, *simulations])}")


def _table(runs: Sequence[Run]) -> pd.DataFrame:
    rows = [{**cell_of(run)._asdict(), **summary(run)} for run in runs]
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, *PANELS])


def _of(table: pd.DataFrame, architecture: str) -> pd.DataFrame:
    """Return the rows of an architecture, or all if it is empty."""
    return table[table["architecture"] == architecture] if architecture else table


def _series(table: pd.DataFrame, column: str, series: str, load: str, metric: str) -> pd.DataFrame:
    """Return mean, min and max of the metric by level, of the rows with this value of the column."""
    own = table[(table[column] == series) & (table["load"] == load)]
    return own.groupby("level")[metric].agg(["mean", "min", "max"])
