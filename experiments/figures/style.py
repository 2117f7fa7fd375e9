"""The common style of the figures: looks that differ even without colour, sizes, the source line and saving."""

from __future__ import annotations

import functools
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import pandas as pd
import seaborn as sns
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, ScalarFormatter
from scipy import stats

from engines.policy.architecture import ARCHITECTURES, Segment
from engines.record.run import Run
from engines.storage.files import replaced
from experiments.compare.comparable import sides, union
from experiments.runner.cells import cell_of

COLUMN, PAGE = 3.3, 7.0
"""Widths of a column and a page of a paper, in inches."""
MOST_TICKS = 7
LEGEND_KEY, LEGEND_LETTER = 0.5, 0.058
"""Widths of a legend's key and of each letter, in inches."""
SOURCE_LETTERS = 21
"""Letters per inch of the source line."""
LOG_FROM = 8.0
"""Loads are drawn on a logarithmic axis if the largest is at least this many times the smallest."""

MOST_DECADES = 1e4
"""A logarithmic axis is labelled within decades if it spans fewer than this factor."""

P = ParamSpec("P")
R = TypeVar("R")
_WHEEL = [str(colour) for colour in sns.color_palette("colorblind").as_hex()]
_BLUE, _ORANGE, _GREEN, _VERMILION, _PINK, _TAN, _ROSE, _GREY, _YELLOW, _SKY = _WHEEL


class Look(NamedTuple):
    """The look of an architecture: colour, marker of live points and style of simulated lines."""

    colour: str
    marker: str
    line: str


_BLACK = "#333333"
_FIXED = dict(
    zip(
        ARCHITECTURES,
        map(Look, (_BLUE, _ORANGE, _GREEN, _BLACK), ("o", "s", "^", "h"), ("-", "--", "-.", ":")),
        strict=True,
    )
)
_OTHERS = tuple(
    map(
        Look,
        (_VERMILION, _PINK, _TAN, _GREY, _SKY, _ROSE, _YELLOW),
        ("D", "v", "P", "X", "<", ">", "*"),
        (":", "-", "--", "-.", ":", "-", "--"),
    )
)
_CAPITALS = {"pd": "PD", "pdv": "PDV"}

SEGMENT_COLOURS: dict[str, str] = {
    Segment.PREFILL_DRAFT: _ROSE,
    Segment.PREFILL_TARGET: _PINK,
    Segment.DRAFT: _SKY,
    Segment.VERIFY: _VERMILION,
}
PART_COLOURS: dict[str, str] = {
    "admission_wait": "#4d4d4d",
    "prefill_queue": _ROSE,
    "prefill": _PINK,
    "draft_queue": "#bfe0f5",
    "draft": _SKY,
    "wasted_drafts": _BLUE,
    "verify_queue": "#f3c6a5",
    "verify": _VERMILION,
    "permit_wait": _YELLOW,
    "stream_wait": "#5e5e5e",
    "contention": _GREY,
    "dispatch_overhead": _TAN,
}
MODEL_COLOURS = {"independent": _SKY, "per-request spread": _VERMILION, "markov": _BLUE}
SEGMENT_LABELS: dict[str, str] = {
    Segment.PREFILL_DRAFT: "prefill, draft",
    Segment.PREFILL_TARGET: "prefill, target",
    Segment.DRAFT: "draft (k steps)",
    Segment.VERIFY: "verify",
}


def architecture_looks(names: Iterable[str]) -> dict[str, Look]:
    """Return a look per architecture: fixed for the built-in ones, in order of name for others."""
    present = list(dict.fromkeys(names))
    others = sorted(name for name in present if name not in _FIXED)
    wheel = {name: _OTHERS[i % len(_OTHERS)] for i, name in enumerate(others)}
    ordered = [name for name in _FIXED if name in present] + others
    return {name: _FIXED.get(name) or wheel[name] for name in ordered}


def shown(architecture: str) -> str:
    """Return the name as shown to readers: PD, PDV."""
    return _CAPITALS.get(architecture, architecture)


def themed(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to draw in this style without changing matplotlib's settings."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> R:
        look = {
            **sns.axes_style("whitegrid"),
            **sns.plotting_context("paper"),
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "lines.linewidth": 1.3,
            "axes.linewidth": 0.8,
            "grid.color": "#e4e4e4",
            "text.parse_math": False,  # names are shown literally, even if they contain dollar signs
        }
        with rc_context(look):
            return draw(*args, **options)

    return drawn


def canvas(columns: int, rows: int = 1, width: float = PAGE, height: float = 2.2, **grid: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes [rows, columns]. width: of the figure; height: of each row; both in inches."""
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **grid)


def level_axis(panel: Axes, levels: Sequence[float]) -> None:
    """Put as many ticks at the levels of a load as fit. The axis is logarithmic if the levels span a wide range."""
    ordered = sorted(level for level in set(levels) if level > 0)
    if not ordered:
        return
    wide = ordered[-1] >= LOG_FROM * ordered[0]
    place = math.log if wide else float
    if wide:
        panel.set_xscale("log")
    apart = (place(ordered[-1]) - place(ordered[0])) / MOST_TICKS
    ticks: list[float] = []
    for level in reversed(ordered):
        if not ticks or place(ticks[-1]) - place(level) > apart:
            ticks.append(level)
    panel.xaxis.set_major_locator(FixedLocator(ticks[::-1]))
    panel.xaxis.set_major_formatter(ScalarFormatter())
    panel.xaxis.set_minor_locator(NullLocator())


def source(runs: Sequence[Run] = (), profile_info: dict[str, Any] | None = None) -> str:
    """Return where the numbers come from: device, pair, date and draft length, as far as they are recorded.

    Settings in which simulations differ from the live runs are named too.
    """
    infos = [*(run.info for run in runs if run.info.get("kind") == "live"), *([profile_info] if profile_info else [])]
    infos = infos or [run.info for run in runs]

    def said(key: str) -> str:
        return ", ".join(dict.fromkeys(str(info[key]) for info in infos if info.get(key)))

    lengths = dict.fromkeys(cell_of(run).draft_length for run in runs)
    if not lengths and profile_info and profile_info.get("draft_length"):
        lengths = dict.fromkeys([str(profile_info["draft_length"])])
    parts = [
        f"device: {said('device')}" if said("device") else "",
        f"pair: {said('pair')}" if said("pair") else "",
        " to ".join(_first_and_last(str(info["date"])[:10] for info in infos if info.get("date"))),
        f"k = {', '.join(lengths)}" if lengths else "",
        f"simulated with other settings than live: {', '.join(_differing(runs))}" if _differing(runs) else "",
    ]
    return " · ".join(part for part in parts if part)


def _differing(runs: Sequence[Run]) -> tuple[str, ...]:
    lives, simulations = ([run for run in runs if run.info.get("kind") == kind] for kind in ("live", "simulated"))
    return union(side.differs for side in sides(lives, simulations))


def _first_and_last(dates: Iterable[str]) -> list[str]:
    ordered = sorted(set(dates))
    return ordered[:1] + ordered[-1:] if len(ordered) > 1 else ordered


def legend_above(figure: Figure, entries: Mapping[str, Artist], columns: int) -> None:
    """Add one legend for the whole figure above the panels, filled column by column.

    It has fewer columns if the names are long.
    """
    room = figure.get_figwidth() / (LEGEND_KEY + LEGEND_LETTER * max(map(len, entries), default=1))
    columns = max(1, min(columns, int(room)))
    figure.legend(list(entries.values()), list(entries), loc="outside upper center", ncols=columns, frameon=False)


def legend_rows(figure: Figure, groups: Sequence[Mapping[str, Artist]]) -> None:
    """Add one legend above the panels, with a row for each group of entries; if all fit into one row, with one.

    A group that is wider than the figure takes several rows.
    """
    groups = [group for group in groups if group]
    everything = [list(group.items()) for group in groups]
    rows = [list(chain.from_iterable(everything))]
    for columns in range(max(map(len, everything), default=1), 0, -1):
        if _width(rows) <= figure.get_figwidth():
            break
        rows = [group[i : i + columns] for group in everything for i in range(0, len(group), columns)]
    blank: tuple[str, Artist] = ("", Line2D([], [], alpha=0))
    filled = [entry for column in zip_longest(*rows, fillvalue=blank) for entry in column]  # column by column
    labels, handles = zip(*filled, strict=True) if filled else ((), ())
    figure.legend(handles, labels, loc="outside upper center", ncols=max(map(len, rows)), frameon=False)


def _width(rows: Sequence[Sequence[tuple[str, Artist]]]) -> float:
    """Return the width of a legend's rows, whose columns are aligned, in inches."""
    columns = zip_longest(*([len(label) for label, _ in row] for row in rows), fillvalue=0)
    return sum(LEGEND_KEY + LEGEND_LETTER * max(column) for column in columns)


def log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times the powers of 10, or at the powers if it spans many."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MOST_DECADES * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def interval(
    confidence: float, least: float = -math.inf, most: float = math.inf
) -> Callable[[pd.Series], tuple[float, float]]:
    """Return a function for seaborn's error bands: the bounds of the confidence interval of a mean (Student's t).

    least, most: where they end, since no value lies beyond.
    """

    def bounds(values: pd.Series) -> tuple[float, float]:
        mean = float(values.mean())
        if len(values) < 2:
            return mean, mean
        half = stats.sem(values) * stats.t.ppf((1 + confidence) / 2, len(values) - 1)
        return max(mean - half, least), min(mean + half, most)

    return bounds


def save(figure: Figure, folder: Path, name: str, source_line: str) -> list[Path]:
    """Write NAME.pdf (vector) and NAME.png (200 dpi) with the source line in the lower right corner."""
    source_line = textwrap.fill(source_line, int(figure.get_figwidth() * SOURCE_LETTERS))
    figure.supxlabel(source_line, fontsize=6, color="#555555", ha="right", x=0.995)
    paths = [folder / f"{name}.pdf", folder / f"{name}.png"]
    with replaced(paths[0]) as beside:
        figure.savefig(beside, metadata={"CreationDate": None})
    with replaced(paths[1]) as beside:
        figure.savefig(beside, dpi=200)
    return paths
