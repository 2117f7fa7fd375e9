"""A timeline of every lane: live above simulated, on one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from engines.record.metrics import steady_window
from engines.record.run import Run
from experiments.figures import style
from experiments.runner.cells import cell_of

BATCHES_SHOWN = 36
"""Roughly how many batches fit on a page with readable batch sizes."""

PLACE = ["device", "lane", "worker"]

MOST_INCHES = 120.0
"""Maximum height of the figure: larger images cannot be saved."""


@style.themed
def timeline(
    runs: Sequence[Run],
    folder: Path,
    start_s: float | None = None,
    length_s: float | None = None,
    name: str = "timeline",
) -> list[Path]:
    """Draw the runs, one above the other, over a window of `length_s` seconds.

    Each row is a worker of a lane. Each bar is a segment, labelled with its batch size if there is room. By default,
    the window of each run begins with its steady window or, unless all runs have one, with the run. The default
    length covers BATCHES_SHOWN batches of the first run.
    """
    steady = start_s is None and all(_is_steady(run) for run in runs)
    starts = [steady_window(run)[0] if steady else start_s or 0.0 for run in runs]
    if length_s is None:
        ends = runs[0].spans.loc[runs[0].spans["start_s"] >= starts[0]].groupby("batch_id")["end_s"].max()
        length_s = float(ends.nsmallest(BATCHES_SHOWN).max()) - starts[0] if len(ends) else 1.0
    rows = [_rows(run.spans) for run in runs]
    heights = [max(len(names), 1) for names in rows]
    height = min(0.62 + 0.27 * sum(heights) / len(runs), MOST_INCHES / len(runs))
    figure, axes = style.canvas(1, len(runs), height=height, sharex=True, height_ratios=heights)
    for panel, run, names, start in zip(axes[:, 0], runs, rows, starts, strict=True):
        _draw(panel, run, names, start, length_s, start if steady else 0.0)
    since = "all clients were served" if steady else "the start of the run"
    axes[-1, 0].set_xlabel(f"time since {since} (s)")
    entries = {style.SEGMENT_LABELS[s]: Patch(color=colour) for s, colour in style.SEGMENT_COLOURS.items()}
    style.legend_above(figure, entries, columns=len(entries))
    return style.save(figure, folder, name, f"number in a bar: batch size (requests) · {style.source(runs)}")


def _is_steady(run: Run) -> bool:
    start_s, end_s = steady_window(run)
    return start_s < end_s


def _rows(spans: pd.DataFrame) -> list[str]:
    """Return the row labels, with lanes in order of streams."""
    order = spans.sort_values(["device", "stream", "lane", "worker"])[PLACE].drop_duplicates()
    return _labels(order).tolist()


def _labels(spans: pd.DataFrame) -> pd.Series:
    """Return the row label of each span. Workers are numbered if a lane has several, devices if it has several."""
    lanes = spans.groupby("lane")
    workers, devices = lanes["worker"].transform("max"), lanes["device"].transform("nunique")
    labels = spans["lane"].where(workers == 0, spans["lane"] + " " + spans["worker"].astype(str))
    return labels.where(devices == 1, "device " + spans["device"].astype(str) + ", " + labels)


def _draw(panel: Axes, run: Run, rows: list[str], start_s: float, length_s: float, zero_s: float) -> None:
    """Draw the window [start_s, start_s + length_s] of a run, on an axis whose 0 is at `zero_s`."""
    spans, end_s = run.spans, start_s + length_s
    shown = spans[(spans["end_s"] > start_s) & (spans["start_s"] < end_s)]
    labels = _labels(spans).loc[shown.index]
    readable_s = length_s / 70  # a two-figure number is about this wide
    for span, label in zip(shown.to_dict("records"), labels, strict=True):
        row = rows.index(label)
        left, right = max(span["start_s"], start_s) - zero_s, min(span["end_s"], end_s) - zero_s
        colour = style.SEGMENT_COLOURS[span["segment"]]
        panel.broken_barh(
            [(left, right - left)], (row - 0.36, 0.72), facecolor=colour, edgecolor="white", linewidth=0.4
        )
        if right - left > readable_s:
            panel.text((left + right) / 2, row, str(span["batch_size"]), ha="center", va="center", fontsize=5.5)
    panel.set(xlim=(start_s - zero_s, end_s - zero_s), ylim=(len(rows) - 0.4, -0.6))
    panel.set_yticks(range(len(rows)), rows)
    panel.grid(visible=False, axis="y")
    cell = cell_of(run)
    panel.set_title(
        f"{style.shown(cell.architecture)}, {cell.load} {cell.level:g}, {run.info.get('kind', 'run')}", loc="left"
    )
