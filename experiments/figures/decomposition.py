"""The parts of the latency: live next to simulated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from engines.record.metrics import decompose
from engines.record.run import Run
from experiments.compare.comparable import own_of
from experiments.figures import style
from experiments.runner.cells import CELL_COLUMNS, cell_of

PANELS_PER_ROW = 3
VISIBLE = 0.002
"""Parts are drawn only if their share of the latency exceeds this somewhere."""


@style.themed
def decomposition(
    lives: Sequence[Run], simulations: Sequence[Run], folder: Path, name: str = "decomposition"
) -> list[Path]:
    """Draw stacked bars of the parts of the mean latency, with one panel per architecture and one pair per load.

    The live bar is on the left, the simulated one (hatched) on the right. Both are shares of the live mean latency
    (or the simulated one without a live run), which is printed above them, so that short latencies stay readable next
    to long ones. Live runs have a contention part only if their solo times come from a profile; it can be negative
    (faster than in the calibration) and is then drawn below zero.
    """
    table = _table(lives, simulations)
    parts = _visible(table)
    architectures = list(style.architecture_looks(table["architecture"]))
    columns = min(len(architectures), PANELS_PER_ROW)
    rows = math.ceil(len(architectures) / columns)
    figure, axes = style.canvas(columns, rows, sharey=True, height=2.9 if rows == 1 else 2.4)
    panels = list(axes.flat)
    for panel, architecture in zip(panels, architectures, strict=False):
        _bars(panel, table[table["architecture"] == architecture], parts)
        panel.set_title(style.shown(architecture))
    for empty in panels[len(architectures) :]:
        empty.set_axis_off()
    for first in axes[:, 0]:
        first.set_ylabel("share of the live mean latency")
    entries = {part.replace("_", " "): Patch(color=style.PART_COLOURS[part]) for part in parts}
    style.legend_above(figure, entries, columns=min(len(parts), 6))
    note = "above: mean latency · left bar: live, right bar (hatched): simulated"
    return style.save(figure, folder, name, f"{note} · {style.source([*lives, *simulations])}")


def _table(lives: Sequence[Run], simulations: Sequence[Run]) -> pd.DataFrame:
    """Return the mean of each part in seconds by cell and kind, averaged over repeats."""
    rows = []
    for kind, runs in (("live", lives), ("simulated", own_of(simulations))):
        rows += [{**cell_of(run)._asdict(), "kind": kind, **decompose(run).mean()} for run in runs]
    table = pd.DataFrame(rows)
    return table.groupby([*CELL_COLUMNS, "kind"], as_index=False).mean()


def _visible(table: pd.DataFrame) -> list[str]:
    shares = table[list(style.PART_COLOURS)].abs().div(table["latency_s"], axis=0).max()
    return [part for part in style.PART_COLOURS if shares[part] > VISIBLE]


def _bars(panel: Axes, table: pd.DataFrame, parts: list[str]) -> None:
    levels = sorted(table["level"].unique())
    latency_s = table.pivot_table(index="level", columns="kind", values="latency_s").reindex(levels)
    whole_s = latency_s.reindex(columns=["live", "simulated"]).bfill(axis=1)["live"]
    tops = np.ones(len(levels))
    for kind, offset, hatch in (("live", -0.2, None), ("simulated", 0.2, "////")):
        means = table[table["kind"] == kind].groupby("level")[parts].mean().reindex(levels).fillna(0.0)
        means = means.div(whole_s, axis=0)
        places = np.arange(len(levels)) + offset
        above, below = np.zeros(len(levels)), np.zeros(len(levels))
        for part in parts:
            heights = means[part].to_numpy()
            base = np.where(heights >= 0, above, below)
            panel.bar(
                places, heights, 0.36, bottom=base, color=style.PART_COLOURS[part], hatch=hatch, edgecolor="white",
                linewidth=0.3,
            )  # fmt: skip
            above, below = above + heights.clip(min=0), below + heights.clip(max=0)
        tops = np.maximum(tops, above)
    for place, (top, seconds) in enumerate(zip(tops, whole_s, strict=True)):
        panel.text(place, top + 0.02, f"{seconds:.2g} s", ha="center", va="bottom", fontsize=5.5)
    panel.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    panel.set_xlabel(table["load"].iloc[0] + (" (clients)" if table["load"].iloc[0] == "concurrency" else ""))
    panel.grid(visible=False, axis="x")
    panel.margins(y=0.08)
