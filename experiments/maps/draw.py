"""Draw a map: one figure per panel at the width of a column, and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle

from experiments.figures import style
from experiments.maps.questions import Panel

HEIGHT = 2.5  # inches
LETTERS = 7  # size of the text in cells, in points
HATCH = "////"
MOST_GAIN = 2.0  # colours are full from here on, and from its inverse down
NEAR = 0.03
"""Gains closer to 1 are in grey italics: the simulator's mean error in throughput is 2.7% (docs/fidelity.md)."""
OPEN = "seeds or calibration leave it open"


@style.themed
def draw(panel: Panel, found: pd.DataFrame, folder: Path, name: str, source: str) -> list[Path]:
    """Draw the verdicts of a panel (experiments.maps.grid.verdicts) as NAME.pdf and NAME.png. Returns both.

    Each cell has the winner or the gain in it, and is hatched where that is open. Gains within NEAR of 1 look
    different.
    """
    figure, axes = style.canvas(1, 1, style.COLUMN, HEIGHT)
    axis: Axes = axes[0, 0]
    shown = "open" if panel.shows == "winner" else "gain_open"
    values, texts, unsure = (_table(found, column) for column in (panel.shows, panel.shows, shown))
    if panel.shows == "winner":
        lengths = sorted(set(found["winner"].astype(int)))
        numbers = values.astype(int).map(lengths.index).astype(float)
        look: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": max(len(lengths) - 1, 1)}
    else:
        most = np.log2(MOST_GAIN)
        numbers, texts = values.astype(float).map(np.log2), values.map("{:.2f}".format)
        look = {"cmap": sns.color_palette("vlag_r", as_cmap=True), "vmin": -most, "vmax": most}
    sns.heatmap(
        numbers, annot=texts, fmt="", cbar=False, linewidths=0.5, ax=axis, annot_kws={"size": LETTERS}, **look
    )
    for ((row, column), is_open), text in zip(np.ndenumerate(unsure.to_numpy(bool)), axis.texts, strict=True):
        if is_open:  # lines are light where letters are, on dark cells
            lines = "#ffffff60" if to_rgb(text.get_color())[0] > 0.5 else "#00000030"
            box = Rectangle((column, row), 1, 1, fill=False, hatch=HATCH, edgecolor=lines, linewidth=0)
            axis.add_patch(box)
    if panel.shows == "gain":
        for text, gain in zip(axis.texts, values.to_numpy(float).flat, strict=True):
            if abs(gain - 1) < NEAR:
                text.set(style="italic", color="#5a5a5a")
    axis.set(xlabel=panel.x, ylabel=panel.y)
    axis.set_title(panel.title)
    axis.tick_params(length=0)
    axis.tick_params(axis="y", rotation=0)
    if unsure.to_numpy(bool).any():
        key = Patch(facecolor="white", edgecolor="#555555", hatch=HATCH, linewidth=0.4)
        style.legend_above(figure, {OPEN: key}, columns=1)
    return style.save(figure, folder, name, source)


def _table(found: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column over the axes, with the largest y on top."""
    table = found.pivot(index="y", columns="x", values=column).sort_index(ascending=False)
    table.index, table.columns = (pd.Index([f"{value:g}" for value in axis]) for axis in table.axes)
    return table
