"""What every lane did, moment by moment: live above simulated, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from engines.run import Run
from experiments.figures import style

WORKS_SHOWN = 40
"""About as many works as a page can show with readable batch sizes."""

MOST_INCHES = 120.0
"""Of the whole figure's height: larger pictures cannot be written."""


@style.themed
def timeline(
    runs: Sequence[Run], folder: Path, start_s: float = 0.0, length_s: float | None = None, name: str = "timeline"
) -> list[Path]:
    """Draw the runs, one above the other, over the window [start_s, start_s + length_s] of run time.

    A row is a worker of a lane, a bar a segment with its batch size in it where it fits. Without a length, the
    window holds the first WORKS_SHOWN works of the first run.
    """
    if length_s is None:
        ends = runs[0].spans.loc[runs[0].spans["start_s"] >= start_s].groupby("work")["end_s"].max()
        length_s = float(ends.nsmallest(WORKS_SHOWN).max()) - start_s if len(ends) else 1.0
    rows = [_rows(run.spans) for run in runs]
    heights = [max(len(names), 1) for names in rows]
    height = min(0.9 + 0.38 * sum(heights) / len(runs), MOST_INCHES / len(runs))
    figure, axes = style.canvas(1, len(runs), width=9.0, height=height, sharex=True, height_ratios=heights)
    for panel, run, names in zip(axes[:, 0], runs, rows, strict=True):
        _draw(panel, run, names, start_s, start_s + length_s)
    axes[-1, 0].set_xlabel("time since the start of the run (s)")
    entries = {style.SEGMENT_LABELS[s]: Patch(color=colour) for s, colour in style.SEGMENT_COLOURS.items()}
    style.legend_above(figure, entries, columns=len(entries))
    return style.save(figure, folder, name, f"number in a bar: batch size (requests) · {style.source(runs)}")


def _rows(spans: pd.DataFrame) -> list[str]:
    """Row labels, lanes in order of their streams; the worker is named where a lane has several."""
    workers = spans.groupby("lane")["worker"].max()
    order = spans.sort_values(["device", "stream", "lane", "worker"])[["lane", "worker"]].drop_duplicates()
    return [_label(lane, worker, workers) for lane, worker in order.itertuples(index=False)]


def _label(lane: str, worker: int, workers: pd.Series) -> str:
    return f"{lane} {worker}" if workers[lane] > 0 else lane


def _draw(panel: Axes, run: Run, rows: list[str], start_s: float, end_s: float) -> None:
    spans = run.spans
    shown = spans[(spans["end_s"] > start_s) & (spans["start_s"] < end_s)]
    workers = spans.groupby("lane")["worker"].max()
    readable_s = (end_s - start_s) / 90  # a two-figure number is about this wide
    for span in shown.to_dict("records"):
        row = rows.index(_label(span["lane"], span["worker"], workers))
        left, right = max(span["start_s"], start_s), min(span["end_s"], end_s)
        colour = style.SEGMENT_COLOURS[span["segment"]]
        panel.broken_barh(
            [(left, right - left)], (row - 0.36, 0.72), facecolor=colour, edgecolor="white", linewidth=0.4
        )
        if right - left > readable_s:
            panel.text((left + right) / 2, row, str(span["batch_size"]), ha="center", va="center", fontsize=6.5)
    panel.set(xlim=(start_s, end_s), ylim=(len(rows) - 0.4, -0.6))
    panel.set_yticks(range(len(rows)), rows)
    panel.grid(visible=False, axis="y")
    panel.set_title(f"{run.name} ({run.info.get('kind', 'run')})", loc="left", fontsize=9)
