"""Figures of a sweep: metrics over one axis, with a line per architecture and confidence bands over repeats."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from calibrate.profile import Profile
from experiments.figures import style
from experiments.sweep.config import Sweep
from experiments.sweep.table import FINISHED

PANELS = {
    "throughput_tokens_per_s": "throughput (tokens/s)",
    "goodput_requests_per_s": "goodput (requests/s)",
    "slo_attainment": "requests that meet the SLO",
    "ttft_s.p95": "P95 TTFT (ms)",
    "tpot_s.p95": "P95 TPOT (ms)",
    "running_at_least_1": "device busy (share of time)",
}
AXES = {
    "concurrency": "concurrency (clients)", "rate": "arrival rate (requests/s)", "k": "draft length k",
    "decode_limit": "batch limit of draft and verify (requests)",
    "prefill_limit": "batch limit of prefill (requests)",
    "slots": "slots", "permits": "permits", "slo_ttft_s": "TTFT objective (s)", "slo_tpot_s": "TPOT objective (s)",
    "prompt_tokens": "prompt tokens", "output_tokens": "output tokens", "acceptance": "acceptance (alpha)",
}  # fmt: skip
SHARES = ("slo_attainment", "running_at_least_1")
OBJECTIVES = {"ttft_s.p95": "slo_ttft_s", "tpot_s.p95": "slo_tpot_s"}
MS = 1e3
HEADINGS = ("architecture",)  # of seaborn's legend
T = TypeVar("T")
LOG_FROM = 20.0
"""A metric is drawn on a logarithmic axis if the largest mean is more than this many times the smallest."""
MOST_FIGURES = 12
DASHES: list[tuple[float, ...] | str] = ["", (4, 1.5), (1, 1), (5, 1, 1, 1), (8, 2)]


@style.themed
def draw(sweep: Sweep, rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw PANELS together at the width of a page, and each alone at that of a column, as PDF and PNG.

    The x axis is the load or, if it does not vary, the first axis whose values are numbers. Colours are
    architectures. The axis with the next most values sets dashes, one per value; if there are more values than
    DASHES, evenly spaced ones are drawn. There is a figure for each combination of the others, MOST_FIGURES at most,
    evenly spaced too. Random axes other than x are left out. The objective is a dotted line if there is only one.
    """
    rows = rows[rows["status"] == FINISHED].copy()
    plan = planned(sweep, rows)
    if plan is None or rows.empty:
        return []
    x, dashed, others = plan
    rows[x] = pd.to_numeric(rows[x])
    note = ""
    if dashed is not None:
        values = sorted(rows[dashed].unique(), key=_place)
        drawn = spread(values, len(DASHES))
        rows = rows[rows[dashed].isin(drawn)]
        note = f"{len(drawn)} of {len(values)} values of {_said(dashed)}" if len(drawn) < len(values) else ""
    paths = []
    for name, part in spread(list(_parts(rows, others)), MOST_FIGURES):
        paths += _figures(sweep, part, x, dashed, (name, note), folder)
    return paths


def planned(sweep: Sweep, rows: pd.DataFrame) -> tuple[str, str | None, list[str]] | None:
    """Return the axis to draw over, the one that sets dashes, and those with a figure for each value.

    None if no axis with numbers varies.
    """
    varying = [name for name in sweep.varying() if rows[name].nunique() > 1]
    numeric = [name for name in varying if pd.to_numeric(rows[name], errors="coerce").notna().all()]
    if not numeric:
        return None
    x = next((name for name in ("concurrency", "rate") if name in numeric), numeric[0])
    drawn = set() if sweep.random is None else set(sweep.random.axes())
    rest = [name for name in varying if name not in (x, "architecture") and name not in drawn]
    dashed = max(rest, key=lambda name: rows[name].nunique(), default=None)
    return x, dashed, [name for name in rest if name != dashed]


def spread(values: Sequence[T], most: int) -> list[T]:
    """Return the values, or `most` of them, evenly spaced from the first to the last."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def _place(value: Any) -> tuple[float, str]:
    """Where a value stands among those of an axis: numbers by size, even if they are texts."""
    number = pd.to_numeric(pd.Series([value]), errors="coerce")[0]
    return (math.inf if pd.isna(number) else float(number)), str(value)


def _parts(rows: pd.DataFrame, others: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    if not others:
        yield "", rows
        return
    for values, part in rows.groupby(list(others)):
        yield ", ".join(f"{_said(name)} {value}" for name, value in zip(others, values, strict=True)), part


def _figures(
    sweep: Sweep, rows: pd.DataFrame, x: str, dashed: str | None, notes: tuple[str, str], folder: Path
) -> list[Path]:  # fmt: skip
    metrics = [name for name in PANELS if name in rows and rows[name].notna().any()]
    repeats = f"means of {sweep.repeats} repeats, {sweep.confidence:.0%} confidence" if sweep.repeats > 1 else "once"
    measured = {**Profile.load(Path(sweep.profile)).info, "draft_length": None}  # the rows have their own
    said = (*notes, f"simulated, {repeats}", style.source(profile_info=measured))
    source = " · ".join(filter(None, said))
    ending = "".join(f"-{word}" for word in notes[0].replace(",", "").split())
    paths = []
    for names, width in ((metrics, style.PAGE), *(([name], style.COLUMN) for name in metrics)):
        columns = {1: 1, 2: 2, 4: 2}.get(len(names), 3)
        figure, axes = style.canvas(columns, -(-len(names) // columns), width, height=2.4)
        figure.set_layout_engine(ConstrainedLayoutEngine(wspace=0.06))
        for panel, metric in zip(axes.flat, names, strict=False):
            _panel(sweep, panel, rows, x, dashed, metric)
        for panel in axes.flat[len(names) :]:
            panel.remove()
        handles, labels = axes.flat[0].get_legend_handles_labels()
        for panel in axes.flat[: len(names)]:
            panel.get_legend().remove()
        entries = dict(zip(labels, handles, strict=True))
        architectures = {name: entries[name] for name in map(style.shown, rows["architecture"].unique())}
        dashes = {name: handle for name, handle in entries.items() if name not in (*architectures, *HEADINGS, dashed)}
        style.legend_rows(figure, [architectures, dashes])
        name = "sweep" if len(names) > 1 else names[0].split("_")[0]
        paths += style.save(figure, folder, f"{name}{ending}", source)
    return paths


def _panel(sweep: Sweep, panel: Axes, rows: pd.DataFrame, x: str, dashed: str | None, metric: str) -> None:
    looks = style.architecture_looks(rows["architecture"])
    shown = rows.assign(architecture=rows["architecture"].map(style.shown))
    if metric in OBJECTIVES:
        shown[metric] *= MS
    styles = {}
    if dashed is not None:
        values = sorted(rows[dashed].unique(), key=_place)
        labels = [f"{_said(dashed)} {values[0]}", *map(str, values[1:])]
        shown[dashed] = rows[dashed].map(dict(zip(values, labels, strict=True)))
        styles = {"style": dashed, "style_order": labels, "dashes": dict(zip(labels, DASHES, strict=False))}
    colours = {style.shown(name): look.colour for name, look in looks.items()}
    common = {"data": shown, "x": x, "y": metric, "hue": "architecture", "palette": colours, "ax": panel}
    if sweep.random is not None and x in sweep.random.axes():
        means = shown.groupby([x, "architecture"], as_index=False)[metric].mean()
        sns.scatterplot(**{**common, "data": means}, s=10, linewidth=0)
        if rows[x].max() >= style.LOG_FROM * rows[x].min() > 0:
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
    else:
        sns.lineplot(
            **common, **styles, errorbar=style.interval(sweep.confidence, 0.0, 1.0 if metric in SHARES else math.inf),
            err_kws={"alpha": 0.2, "linewidth": 0},
        )  # fmt: skip
        style.level_axis(panel, rows[x].tolist())
    panel.set(xlabel=AXES.get(x, _said(x)), ylabel=PANELS[metric])
    objectives = (MS * rows[OBJECTIVES[metric]].dropna().unique()).tolist() if metric in OBJECTIVES else []
    if len(objectives) == 1:
        panel.axhline(objectives[0], color="#4d4d4d", linewidth=0.8, linestyle=":", zorder=1)
        panel.annotate("SLO", (0.01, objectives[0]), xycoords=("axes fraction", "data"), fontsize=6, va="bottom")
    means = shown.groupby([x, "architecture", *([dashed] if dashed else [])])[metric].mean()
    if metric in OBJECTIVES and means.min() > 0 and means.max() > LOG_FROM * means.min():
        panel.set_yscale("log")
        panel.set_ylim(means.min() / 2, 2 * max([means.max(), *objectives]))
        style.log_ticks(panel.yaxis)
    else:
        panel.set_ylim(0, 1.05 if metric in SHARES else None)


def _said(name: str) -> str:
    return name.replace("_", " ")
