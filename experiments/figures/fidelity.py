"""How far predictions are from live runs: errors by metric, and predicted against measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from engines.policy.architecture import BASELINE, PD, PDV
from engines.record.metrics import request_times, summary
from engines.record.run import Run
from experiments.compare.comparable import BLIND, REPLAY, SIMULATED, by_cell, mode_of
from experiments.compare.compare import THROUGHPUT
from experiments.compare.fidelity import FIDELITY, METRICS, Fidelity, fidelity
from experiments.compare.identity import replayed_runs
from experiments.figures import style

MODE_COLOURS = {REPLAY: "#4d4d4d", BLIND: "#b0b0b0"}
LABELS = {
    "throughput": "tokens/s",
    "latency": "mean\nlatency",
    "P50": "P50\nlatency",
    "P95": "P95\nlatency",
    "P99": "P99\nlatency",
}


def family(run: Run) -> str:
    """Return which of the three built-in architectures a run's is a variant of."""
    lanes = run.info["architecture"].get("lanes", ())
    if any(lane.get("run_to_completion") for lane in lanes):
        return BASELINE.name
    return PDV.name if any("verify" in lane.get("steps", {}) for lane in lanes) else PD.name


@style.themed
def error_distribution(
    lives: Sequence[Run], simulations: Sequence[Run], folder: Path, name: str = "error_distribution"
) -> list[Path]:
    """Draw one point per cell and metric, with a box from quartile to quartile, replays and blind side by side.

    The grey bars show the largest error that the tolerances allow a cell of a replay.
    """
    found = fidelity(lives, simulations)
    figure, axes = style.canvas(1, height=2.9)
    panel = axes[0][0]
    metrics = list(METRICS)
    for mode, cells in found.cells.items():
        table = cells[metrics].melt(var_name="metric", value_name="error")
        offset = 0.0 if len(found.cells) == 1 else (-0.2 if mode == REPLAY else 0.2)
        _boxes(
            panel,
            [100 * table.loc[table["metric"] == metric, "error"].dropna().to_numpy() for metric in metrics],
            offset,
            MODE_COLOURS[mode],
        )
    for place, metric in enumerate(metrics):
        limit = FIDELITY[REPLAY].get(metric)
        if limit is not None and REPLAY in found.cells:
            panel.fill_between(
                [place - 0.45, place + 0.45],
                -100 * limit.worst,
                100 * limit.worst,
                color="#f0f0f0",
                linewidth=0,
                zorder=0,
            )
    panel.axhline(0, color="#777777", linewidth=0.8, zorder=1)
    panel.set_xticks(range(len(metrics)), [LABELS.get(metric, metric) for metric in metrics])
    panel.set_ylabel("(simulated - live) / live (%)")
    panel.set_xlim(-0.55, len(metrics) - 0.45)
    panel.grid(visible=False, axis="x")
    entries: dict[str, Artist] = {
        _told(mode, found): Line2D([], [], linestyle="", marker="o", markersize=4, color=MODE_COLOURS[mode])
        for mode in found.cells
    }
    style.legend_above(figure, entries, columns=2)
    note = "a point per cell; box: quartiles and median; shaded: the tolerance of the worst cell (replay)"
    return style.save(figure, folder, name, f"{note} · {style.source(lives)}")


def _told(mode: str, found: Fidelity) -> str:
    totals = found.totals()
    mean = totals[(totals["mode"] == mode) & (totals["metric"] == "latency")]["mean"]
    return (
        f"{mode}: {len(found.cells[mode])} cells, mean |error| of the mean latency {100 * float(mean.iloc[0]):.1f}%"
    )


def _boxes(panel: Axes, values: list[np.ndarray], offset: float, colour: str) -> None:
    places = np.arange(len(values)) + offset
    panel.boxplot(
        values, positions=places, widths=0.3, showfliers=False, whis=0, manage_ticks=False, patch_artist=True,
        boxprops={"facecolor": "none", "edgecolor": colour}, medianprops={"color": colour, "linewidth": 1.6},
        whiskerprops={"linewidth": 0}, capprops={"linewidth": 0},
    )  # fmt: skip
    for place, errors in zip(places, values, strict=True):
        ordered = np.argsort(np.argsort(errors))
        apart = 0.24 * (ordered * 7 % 11 / 10 - 0.5)  # neighbours in value are apart in place, without chance
        panel.plot(place + apart, errors, "o", markersize=2.4, color=colour, markeredgewidth=0, alpha=0.8)


@style.themed
def predicted_against_measured(
    lives: Sequence[Run], simulations: Sequence[Run], folder: Path, name: str = "predicted_measured"
) -> list[Path]:
    """Draw the latency of every replayed request, and the throughput of every cell, predicted over measured."""
    replays = [run for run in simulations if mode_of(run) == REPLAY]
    panels = 2 if replays else 1
    figure, axes = style.canvas(panels, height=3.5, width=style.PAGE if replays else style.COLUMN)
    if replays:
        _requests(axes[0][0], list(zip(replayed_runs(replays, lives), replays, strict=True)))
    _throughputs(axes[0][-1], lives, simulations)
    families = {family(run) for run in lives}
    entries: dict[str, Artist] = {
        style.shown(known): Line2D([], [], linestyle="", marker=look.marker, markersize=4, color=look.colour)
        for known, look in style.architecture_looks(sorted(families)).items()
    }
    style.legend_above(figure, entries, columns=3)
    return style.save(figure, folder, name, f"filled: replay or simulated, hollow: blind · {style.source(lives)}")


def _requests(panel: Axes, pairs: Sequence[tuple[Run, Run]]) -> None:
    measured, predicted = [], []
    for live, replay in pairs:
        times = [request_times(run)["latency_s"] for run in (live, replay)]
        both = times[0].to_frame("live").join(times[1].rename("simulated"), how="inner")
        look = style.architecture_looks([family(live)])[family(live)]
        panel.plot(
            both["live"], both["simulated"], look.marker, markersize=1.8, color=look.colour, alpha=0.35,
            markeredgewidth=0, rasterized=True,
        )  # fmt: skip
        measured.append(both["live"].to_numpy())
        predicted.append(both["simulated"].to_numpy())
    live_s, simulated_s = np.concatenate(measured), np.concatenate(predicted)
    mape = float(np.mean(np.abs(simulated_s - live_s) / live_s))
    panel.set_title(f"{len(live_s):,} requests, replayed: MAPE {100 * mape:.1f}%", loc="left")
    _diagonal(panel, np.concatenate([live_s, simulated_s]))
    panel.set(xlabel="latency, live (s)", ylabel="latency, simulated (s)")


def _throughputs(panel: Axes, lives: Sequence[Run], simulations: Sequence[Run]) -> None:
    live = {cell: _mean_throughput(runs) for cell, runs in by_cell(lives).items()}
    looks = style.architecture_looks(sorted({family(run) for run in lives}))
    values = list(live.values())
    for mode in (SIMULATED, REPLAY, BLIND):
        for cell, runs in by_cell([run for run in simulations if mode_of(run) == mode]).items():
            if cell in live:
                look, value = looks[family(runs[0])], _mean_throughput(runs)
                fill = "none" if mode == BLIND else look.colour
                panel.plot(
                    live[cell], value, look.marker, markersize=4, color=look.colour, markerfacecolor=fill,
                    markeredgewidth=0.7, alpha=0.9,
                )  # fmt: skip
                values.append(value)
    panel.set_title(f"{len(live)} cells", loc="left")
    _diagonal(panel, np.array(values))
    panel.set(xlabel="throughput, live (tokens/s)", ylabel="throughput, simulated (tokens/s)")


def _mean_throughput(runs: Sequence[Run]) -> float:
    return float(np.mean([summary(run)[THROUGHPUT] for run in runs]))


def _diagonal(panel: Axes, values: np.ndarray) -> None:
    """Draw the diagonal and 10% beside it on logarithmic axes that hold all values."""
    ends = np.array([values.min() / 1.15, values.max() * 1.15])
    panel.plot(ends, ends, color="#555555", linewidth=0.8, zorder=1)
    panel.fill_between(ends, ends * 0.9, ends * 1.1, color="#eeeeee", linewidth=0, zorder=0)
    panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    panel.set_aspect("equal")
