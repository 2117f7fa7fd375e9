"""Throughput and latency against the load: live points, simulated lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist

from engines.metrics import summary
from engines.run import Run
from experiments.cells import CELL_COLUMNS, cell_of
from experiments.figures import style

PANELS = {
    "throughput_tokens_per_s": "throughput (output tokens/s)",
    "latency_s.median": "median latency (s)",
    "latency_s.p95": "P95 latency (s)",
}
LOADS = {
    "concurrency": "concurrency (clients)",
    "rate": "arrival rate (requests/s)",
    "trace": "length of the trace (requests)",
}
DODGE = 0.012
"""Live points of different architectures stand this share of the axis apart, so that none hides another."""


@style.themed
def load_curves(lives: Sequence[Run], simulations: Sequence[Run], folder: Path, name: str = "load") -> list[Path]:
    """Draw PANELS over the load of one kind; one colour an architecture.

    Live: the mean of the repeats, with a bar from the smallest to the largest. Simulated: a line through the
    cells. Simulations that replay a live run's arrivals are left out, since they are not a closed loop.
    """
    simulations = [run for run in simulations if "replays" not in run.info]
    live, simulated = _table(lives), _table(simulations)
    both = pd.concat([live, simulated])
    load = both["load"].mode()[0]
    colours = style.architecture_colours(both["architecture"])
    levels = sorted(both.loc[both["load"] == load, "level"].unique())
    figure, axes = style.canvas(len(PANELS))
    entries: dict[str, Artist] = {}
    for panel, (metric, label_of) in zip(axes[0], PANELS.items(), strict=True):
        for place, (architecture, colour) in enumerate(colours.items()):
            line = _series(simulated, architecture, load, metric)
            if len(line):
                label = f"{architecture}, simulated"
                entries[label] = panel.plot(line.index, line["mean"], color=colour, zorder=2)[0]
            points = _series(live, architecture, load, metric)
            if len(points):
                aside = (place - (len(colours) - 1) / 2) * DODGE * levels[-1]
                bars = [points["mean"] - points["min"], points["max"] - points["mean"]]
                entries[f"{architecture}, live"] = panel.errorbar(
                    points.index + aside, points["mean"], yerr=bars, fmt="o", markersize=4.5, elinewidth=1,
                    capsize=2.5, capthick=1, color=colour, markeredgecolor="white", markeredgewidth=0.6, zorder=3,
                )  # fmt: skip
        panel.set(xlabel=LOADS[load], ylabel=label_of)
        panel.set_ylim(bottom=0)
        if load == "concurrency":
            panel.set_xticks(levels)
    ordered = {label: entries[label] for label in sorted(entries, key=lambda label: _column(label, colours))}
    style.legend_above(figure, ordered, columns=len(colours))
    note = f"bars: smallest to largest of the live repeats · {style.source([*lives, *simulations])}"
    return style.save(figure, folder, name, note)


def _column(label: str, colours: Mapping[str, str]) -> int:
    """The legend's column: an architecture's two entries stand one above the other."""
    return list(colours).index(label.rpartition(", ")[0])


def _table(runs: Sequence[Run]) -> pd.DataFrame:
    rows = [{**cell_of(run)._asdict(), **summary(run)} for run in runs]
    return pd.DataFrame(rows, columns=[*CELL_COLUMNS, *PANELS])


def _series(table: pd.DataFrame, architecture: str, load: str, metric: str) -> pd.DataFrame:
    """mean, min, max of the metric by level."""
    own = table[(table["architecture"] == architecture) & (table["load"] == load)]
    return own.groupby("level")[metric].agg(["mean", "min", "max"])
