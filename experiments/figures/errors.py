"""The error of the simulation over the load: a line per architecture, with a band over the live repeats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import seaborn as sns

from engines.record.metrics import summary
from engines.record.run import Run
from experiments.compare.comparable import by_cell, own_of
from experiments.figures import style
from experiments.figures.load import LOADS

PANELS = {
    "throughput_tokens_per_s": "throughput",
    "ttft_s.mean": "mean TTFT",
    "tpot_s.mean": "mean TPOT",
    "latency_s.p95": "P95 latency",
}
RANGE = ("pi", 100)  # seaborn's name for a band from the smallest to the largest: two repeats have no useful interval


@style.themed
def errors_over_load(
    lives: Sequence[Run], simulations: Sequence[Run], folder: Path, name: str = "errors"
) -> list[Path]:
    """Draw PANELS over the kind of load with the most cells. Nothing is drawn if it has a single level.

    The error is (simulated - live) / live, where simulated is the mean over its repeats. Cells that differ in nothing
    but k share a point. Replays and blind simulations are drawn only if there are no others.
    """
    table = errors(lives, own_of(simulations))
    if table.empty:
        return []
    table = table[table["load"] == table["load"].mode()[0]]
    if table["level"].nunique() < 2:
        return []
    looks = style.architecture_looks(table["architecture"])
    table["architecture"] = table["architecture"].map(style.shown)
    common = {
        "data": table, "x": "level", "hue": "architecture", "style": "architecture", "markers": True, "markersize": 4,
        "palette": {style.shown(name): look.colour for name, look in looks.items()},
        "errorbar": RANGE, "err_kws": {"alpha": 0.2, "linewidth": 0},
    }  # fmt: skip
    figure, axes = style.canvas(2, 2, height=2.2, sharex=True)
    for panel, (metric, label) in zip(axes.flat, PANELS.items(), strict=True):
        sns.lineplot(**common, y=metric, ax=panel)
        panel.axhline(0, color="#777777", linewidth=0.8, zorder=1)
        panel.set(xlabel=LOADS[table["load"].iloc[0]], ylabel=f"error of {label} (%)")
        style.level_axis(panel, table["level"].tolist())
    handles, labels = axes.flat[0].get_legend_handles_labels()
    for panel in axes.flat:
        panel.get_legend().remove()
    style.legend_rows(figure, [dict(zip(labels, handles, strict=True))])
    note = "(simulated - live) / live; lines: means, bands: from the smallest to the largest of the live repeats"
    return style.save(figure, folder, name, f"{note} · {style.source(lives)}")


def errors(lives: Sequence[Run], simulations: Sequence[Run]) -> pd.DataFrame:
    """Return one row per live run whose cell was simulated: its cell, and the error of each of PANELS in percent."""
    simulated = {
        cell: pd.DataFrame([summary(run) for run in runs]).mean() for cell, runs in by_cell(simulations).items()
    }
    rows = []
    for cell, runs in by_cell(lives).items():
        if cell not in simulated:
            continue
        for measured in map(summary, runs):
            found = {name: 100 * (simulated[cell][name] / measured[name] - 1) for name in PANELS}
            rows.append({**cell._asdict(), **found})
    return pd.DataFrame(rows)
