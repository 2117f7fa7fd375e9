"""The Pareto front of a search: the objective against P95 TPOT."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import seaborn as sns

from calibrate.profile import Profile
from experiments.figures import style
from experiments.search.config import Search

MEETS, MISSES = "meets the SLO", "misses it"


@style.themed
def draw_front(search: Search, candidates: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw every candidate that did not fail, the front as a line and the chosen one in a circle.

    At the widths of a column and of a page, as PDF and PNG.
    """
    shown = candidates[candidates["objective"].notna() & candidates["tpot_s.p95"].notna()]
    if shown.empty:
        return []
    looks = style.architecture_looks(shown["architecture"])
    colours = {style.shown(name): look.colour for name, look in looks.items()}
    points = shown.assign(
        architecture=shown["architecture"].map(style.shown), ms=1e3 * shown["tpot_s.p95"],
        meets=(shown["slo_attainment"] < search.slo_share).map({False: MEETS, True: MISSES}),
    )  # fmt: skip
    measured = {**Profile.load(Path(search.profile)).info, "draft_length": None}
    paths = []
    for name, width in (("front", style.COLUMN), ("front-page", style.PAGE)):
        figure, ((panel,),) = style.canvas(1, width=width, height=2.6)
        sns.scatterplot(
            points, x="ms", y="objective", hue="architecture", palette=colours, style="meets",
            markers={MEETS: "o", MISSES: "X"}, s=18, linewidth=0.3, ax=panel,
        )  # fmt: skip
        front = points[points["front"]].sort_values("ms")
        panel.plot(front["ms"], front["objective"], color="#4d4d4d", linewidth=1, label="Pareto front", zorder=1)
        best = points[points["status"] == "chosen"]
        panel.scatter(best["ms"], best["objective"], s=70, facecolors="none", edgecolors="black", label="chosen")
        what = "rate at the SLO (requests/s)" if search.rates else "throughput (tokens/s)"
        panel.set(xlabel="P95 TPOT (ms)", ylabel=what)
        panel.set_ylim(-0.04 * points["objective"].max(), 1.08 * points["objective"].max())
        if points["ms"].max() >= style.LOG_FROM * points["ms"].min() > 0:
            panel.set_xscale("log")
            style.log_ticks(panel.xaxis)
        handles, labels = panel.get_legend_handles_labels()
        panel.get_legend().remove()
        entries = dict(zip(labels, handles, strict=True))
        groups = (colours, (MEETS, MISSES) if search.has_slo else (), ("Pareto front", "chosen"))
        style.legend_rows(figure, [{name: entries[name] for name in group if name in entries} for group in groups])
        source = f"simulated · means of {search.repeats} repeats · {style.source(profile_info=measured)}"
        paths += style.save(figure, folder, name, source)
    return paths
