"""Which of two layouts serves a load better: what simulations say, and what following them costs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from engines.record.run import Run
from experiments.compare.comparable import BLIND, REPLAY, SIMULATED, by_cell, mode_of
from experiments.compare.compare import spread
from experiments.runner.cells import Cell, cell_of

UNKNOWN_SPREAD = 0.02  # of cells that were run live once: about the largest of repeats on an H100


class Score(NamedTuple):
    """Tokens/s of a closed loop, or the mean latency of another load, negative (s). spread: of the repeats."""

    value: float
    spread: float


class Decision(NamedTuple):
    """Which of two layouts serves a load better.

    metric: tokens/s of a closed loop, else mean latency (s). gain: by how much the live winner is better, as a
    fraction. named: mode -> the layout that the simulation names. regret: mode -> what following it costs, in the
    unit of the metric; 0 if it is right.
    """

    load: str
    metric: str
    winner: Cell
    loser: Cell
    gain: float
    named: dict[str, Cell]
    regret: dict[str, float]


def decisions(lives: Sequence[Run], simulations: Sequence[Run]) -> list[Decision]:
    """Return a decision per pair of layouts that served the same load and that the live runs tell apart.

    They do if the two differ by more than the spread of the live repeats, or UNKNOWN_SPREAD where there was only one.
    Simulations that are neither replays nor blind are only asked if there are no others.
    """
    scores = {mode: _scores([run for run in simulations if mode_of(run) == mode]) for mode in (REPLAY, BLIND)}
    if not any(scores.values()):
        scores = {SIMULATED: _scores(simulations)}
    live = _scores(lives)
    loads: dict[str, list[Cell]] = {}
    for cell, runs in by_cell(lives).items():
        loads.setdefault(_load(runs[0]), []).append(cell)
    found = []
    for load, cells in loads.items():
        for pair in itertools.combinations(cells, 2):
            winner, loser = sorted(pair, key=lambda cell: live[cell].value, reverse=True)
            lost = live[winner].value - live[loser].value
            gain = lost / min(abs(live[cell].value) for cell in pair)
            if gain <= max(live[cell].spread for cell in pair):
                continue
            asked = {mode: known for mode, known in scores.items() if winner in known and loser in known}
            named = {
                mode: winner if known[winner].value >= known[loser].value else loser for mode, known in asked.items()
            }
            regret = {mode: 0.0 if cell == winner else lost for mode, cell in named.items()}
            metric = "tokens/s" if winner.load == "concurrency" else "s"
            found.append(Decision(load, metric, winner, loser, gain, named, regret))
    return found


def _scores(runs: Sequence[Run]) -> dict[Cell, Score]:
    found = {}
    for cell, repeats in by_cell(runs).items():
        values = pd.DataFrame({"value": [_value(run) for run in repeats]})
        own = float(spread(values)["value"])
        found[cell] = Score(float(values["value"].mean()), UNKNOWN_SPREAD if np.isnan(own) else own)
    return found


def _value(run: Run) -> float:
    done = run.finished
    if cell_of(run).load == "concurrency":
        return float(done["output_tokens"].sum()) / run.duration_s if run.duration_s > 0 else float("nan")
    return -float((done["finish_s"] - done["arrival_s"]).mean())


def _load(run: Run) -> str:
    """Return a text that is the same for the same load."""
    cell, made = cell_of(run), run.info.get("workload", {})
    parts = [f"{cell.load} {cell.level:g}"]
    for name, label in (("prompt_lengths", "prompts"), ("output_lengths", "outputs")):
        if made.get(name):
            parts.append(f"{label} {' '.join(map(str, made[name].values()))}")
    if made.get("rate_steps"):
        parts.append(f"rate times {' then '.join(f'{step:g}' for step in made['rate_steps'])}")
    if made.get("alpha") is not None:
        parts.append(f"alpha {made['alpha']:g}")
    names = ("process", "cv", "mean_think_s", "trace_digest", "temperature")
    return ", ".join([*parts, *(f"{name} {made[name]}" for name in names if made.get(name))])
