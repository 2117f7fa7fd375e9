"""Stage costs and contention: as measured for the profile, and as modelled by the simulator."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from calibrate.contention import fit_contention, leave_one_group_out
from calibrate.measured_contention import measured_contention
from calibrate.profile import Profile
from engines.policy.architecture import Segment
from engines.policy.segment_shape import SegmentShape
from experiments.figures import style
from sim.costs import CostModel

MARKERS = {2: "o", 3: "^"}
SERIES = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
"""Markers of the series in a panel."""
SHADES = 0.45
"""How much paler the first series of a panel is than the last."""


@style.themed
def stage_costs(profile: Profile, costs: CostModel, folder: Path, name: str = "stage_costs") -> list[Path]:
    """Draw one panel per segment: measured medians with bars from P5 to P95, and the means of the cost model.

    Prefill is plotted over the prompt tokens in a batch, draft and verify over the batch size, with one series per
    draft length and context.
    """
    segments = [segment for segment in Segment if (profile.stage_costs["segment"] == segment).any()]
    figure, axes = style.canvas(2, (len(segments) + 1) // 2, height=2.3)
    panels = axes.flat
    for panel, segment in zip(panels, segments, strict=False):
        _segment(panel, segment, profile.stage_costs[profile.stage_costs["segment"] == segment], costs)
    for empty in list(panels):
        empty.set_axis_off()
    note = f"points: median, bars: P5 to P95, lines: mean of the cost model · {style.source((), profile.info)}"
    return style.save(figure, folder, name, note)


@style.themed
def contention(profile: Profile, folder: Path, name: str = "contention") -> list[Path]:
    """Plot predicted against measured rates of segments that run together; on the diagonal the model is right.

    Each group is predicted from the others, where several were measured. The title gives the errors.
    """
    table, title = _left_out(profile.contention)
    streams = table.groupby("group")["group"].transform("size")
    figure, axes = style.canvas(1, width=style.COLUMN, height=3.7)
    panel = axes[0][0]
    panel.plot([0, 1.05], [0, 1.05], color="#999999", linewidth=1, zorder=1)
    entries: dict[str, Artist] = {}
    for together in sorted(streams.unique()):
        marker = MARKERS.get(together, "D")
        entries[f"{together} streams"] = Line2D([], [], linestyle="", marker=marker, color="#555555")
        for segment, colour in style.SEGMENT_COLOURS.items():
            rows = table[(table["segment"] == segment) & (streams == together)]
            if len(rows):
                entries[style.SEGMENT_LABELS[segment]] = Patch(color=colour)
                panel.scatter(
                    rows["rate"], rows["predicted"], s=28, color=colour, marker=marker,
                    edgecolor="white", linewidth=0.5, zorder=2,
                )  # fmt: skip
    panel.set(xlabel="measured rate (1: as fast as alone)", ylabel="predicted rate", xlim=(0, 1.05), ylim=(0, 1.05))
    panel.set_aspect("equal")
    panel.set_title(title, fontsize=6.5, loc="left")
    style.legend_above(figure, dict(sorted(entries.items())), columns=2)
    return style.save(figure, folder, name, style.source((), profile.info))


def _left_out(measured: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Return the contention table with predictions, and what the title says of their errors."""
    law = fit_contention(measured).residuals
    if law["group"].nunique() < 2:
        return law, f"fitted to one group: mean |error| {law['error'].abs().mean():.3f}"
    table, of_law = leave_one_group_out(measured, measured_contention), law["error"].abs().mean()
    error = table["error"].abs()
    title = f"each group predicted from the others:\nmean |error| {error.mean():.3f}, largest {error.max():.3f}"
    return table, f"{title}\nthe law alone, fitted to all: {of_law:.3f}"


def _segment(panel: Axes, segment: Segment, table: pd.DataFrame, costs: CostModel) -> None:
    over = "tokens" if segment.startswith("prefill") else "batch_size"
    series = ["batch_size"] if over == "tokens" else ["draft_length", "context_tokens"]
    groups = list(table.groupby(series))
    for place, (key, rows) in enumerate(groups):
        shade = SHADES + (1 - SHADES) * (place + 1) / len(groups)
        rows = rows.sort_values(over)
        colour = _paler(style.SEGMENT_COLOURS[segment], shade)
        bars = [rows["p50_ms"] - rows["p05_ms"], rows["p95_ms"] - rows["p50_ms"]]
        panel.errorbar(
            rows[over], rows["p50_ms"], yerr=bars, fmt=SERIES[place % len(SERIES)], markersize=3.5, capsize=2,
            color=colour, label=_series_label(series, cast(tuple[float, ...], key)),
        )  # fmt: skip
        line = _line(segment, rows, over, costs)
        panel.plot(line.index, line, color=colour, linewidth=1.2)
    panel.set_title(style.SEGMENT_LABELS[segment], loc="left")
    panel.set(xlabel="prompt tokens in the batch" if over == "tokens" else "batch (requests)", ylabel="time (ms)")
    panel.set_ylim(0, panel.get_ylim()[1] * (1 + 0.04 * len(groups)))  # with room for the legend
    style.level_axis(panel, table[over].tolist())
    if len(groups) > 1:
        panel.legend(fontsize=5.5, ncols=1 + len(groups) // 5)


def _line(segment: Segment, rows: pd.DataFrame, over: str, costs: CostModel) -> pd.Series:
    """Return the predicted mean duration (ms) between the smallest and the largest measured point."""
    first = rows.iloc[0]
    batch, k, context = int(first["batch_size"]), int(first["draft_length"]), float(first["context_tokens"])
    if over == "tokens":
        points = np.unique(np.linspace(rows[over].min(), rows[over].max(), 60).round().astype(int))
        shapes = [SegmentShape.prefill(segment, batch, int(tokens)) for tokens in points]
    else:
        points = np.arange(int(rows[over].min()), int(rows[over].max()) + 1)
        decode = SegmentShape.draft if segment is Segment.DRAFT else SegmentShape.verify
        shapes = [decode(int(size), k, context) for size in points]
    return pd.Series([1e3 * costs.cost(shape).duration_s for shape in shapes], index=points)


def _series_label(series: list[str], key: Iterable[float]) -> str:
    names = {"batch_size": "prompts", "draft_length": "k", "context_tokens": "context"}
    return ", ".join(f"{names[name]} {value:g}" for name, value in zip(series, key, strict=True))


def _paler(colour: str, strength: float) -> tuple[float, ...]:
    """Return the colour mixed with white; strength 1 leaves it unchanged."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return tuple(1 - strength * (1 - part) for part in parts)
