"""Where the errors come from: the parts of the error of the mean latency, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.compare.exchange import BATCHES, CAUSES, CONTENTION, HOST, PADDING, SOLO
from experiments.compare.explain import Explanation
from experiments.figures import style
from experiments.runner.cells import CELL_COLUMNS, Cell, cell_of

COLOURS = {
    SOLO: style.PART_COLOURS["draft"], PADDING: style.PART_COLOURS["permit_wait"],
    HOST: style.PART_COLOURS["dispatch_overhead"], CONTENTION: style.PART_COLOURS["verify"], BATCHES: "#9a9a9a",
}  # fmt: skip
UNITS = {"concurrency": "clients", "rate": "requests/s", "trace": "requests"}


@style.themed
def explained(found: Sequence[Explanation], folder: Path, name: str = "explained") -> list[Path]:
    """Draw one stacked bar per cell, the mean of its runs: parts that raise the error to the right, others to the
    left, and the whole error as a mark. Cells are in order of the error."""
    table = _table(found)
    figure, axes = style.canvas(1, height=0.75 + 0.155 * max(len(table), 6))
    panel = axes[0][0]
    places = range(len(table))
    above, below = pd.Series(0.0, table.index), pd.Series(0.0, table.index)
    causes = [cause for cause in CAUSES if (table[cause].abs() > 0).any()]
    for cause in causes:
        values = 100 * table[cause]
        base = above.where(values >= 0, below)
        panel.barh(places, values, 0.72, left=base, color=COLOURS[cause], edgecolor="white", linewidth=0.3)
        above, below = above + values.clip(lower=0), below + values.clip(upper=0)
    panel.plot(100 * table["error"], places, "D", markersize=3, color="black", zorder=3)
    panel.axvline(0, color="#555555", linewidth=0.8)
    panel.set_yticks(places, [_label(Cell(*cell)) for cell in table.index])
    panel.tick_params(axis="y", labelsize=6)
    panel.set_ylim(len(table) - 0.4, -0.6)
    panel.set_xlabel("part of the error of the mean latency (% of the live mean latency)")
    panel.grid(visible=False, axis="y")
    panel.use_sticky_edges = False
    panel.margins(x=0.03)
    entries: dict[str, Artist] = {cause: Patch(color=COLOURS[cause]) for cause in causes}
    entries["whole error"] = Line2D([], [], linestyle="", marker="D", markersize=3, color="black")
    style.legend_above(figure, entries, columns=3)
    return style.save(figure, folder, name, style.source([one.live for one in found]))


def _table(found: Sequence[Explanation]) -> pd.DataFrame:
    """Return the error and its parts by cell, as fractions of the live mean latency."""
    rows = [
        {**cell_of(one.live)._asdict(), "error": one.error, **{cause: one.share(cause) for cause in CAUSES}}
        for one in found
    ]
    return pd.DataFrame(rows).groupby(CELL_COLUMNS).mean().sort_values("error", ascending=False)


def _label(cell: Cell) -> str:
    unit = "client" if cell.load == "concurrency" and cell.level == 1 else UNITS[cell.load]
    return f"{style.shown(cell.architecture)}, {cell.level:g} {unit}"
