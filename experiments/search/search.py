"""Search for the best candidate: propose, simulate, rank, and simulate the finalists again with other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w

from engines.storage.files import replaced
from engines.storage.locks import locked
from experiments.program.progress import bar
from experiments.program.provenance import PROVENANCE, note_call
from experiments.search.config import OTHER_SEEDS, Search
from experiments.search.evaluate import Evaluator
from experiments.search.proposals import Proposals
from experiments.search.ranking import pareto_front, probability_best, reached, scores
from experiments.sweep.config import SCHEMA_VERSION
from experiments.sweep.store import CHUNKS, FIGURES, ROWS, Results
from experiments.sweep.sweep import check_folder, prediction
from experiments.sweep.table import FAILED, FINISHED

SETTINGS, CANDIDATES = "search.toml", "candidates.parquet"
ROUND = 8
"""Candidates that are proposed and simulated together. Fixed, so that the number of cores changes nothing."""
CHOSEN, REJECTED = "chosen", "rejected"
THROUGHPUT, TPOT = "throughput_tokens_per_s", "tpot_s.p95"
SHOWN = (THROUGHPUT, "goodput_requests_per_s", "slo_attainment", "ttft_s.p95", TPOT, "latency_s.p95",
         "beyond_profile_share")  # fmt: skip


@dataclass
class Found:
    """candidates: one row per different candidate, best first. rows: every simulation. simulations: run by this
    call."""

    candidates: pd.DataFrame
    rows: pd.DataFrame
    simulations: int


def run_search(
    search: Search, folder: Path, *, jobs: int | None = None, backend: str = "processes", command: str = ""
) -> Found:
    """Search, and write the candidates and every simulated row to the folder.

    Stopped and called again, it goes on where it stopped, and ends as if it had not been. Raises InputError, also if
    Optuna is not installed.
    """
    propose = Proposals(search)
    settings = prediction(search.profile, search.pair, search.extrapolate, search.max_context)
    with locked(folder):
        check_folder(folder, (SETTINGS, ROWS, CANDIDATES, PROVENANCE), (CHUNKS, FIGURES), mark="trials")
        store = Results(folder)
        with replaced(folder / SETTINGS) as beside:
            beside.write_text(
                tomli_w.dumps({"schema_version": SCHEMA_VERSION, **search.resolved()}), encoding="utf-8"
            )
        note_call(folder, command)
        evaluator = Evaluator(search, settings, store, jobs, backend)
        found: dict[str, dict[str, Any]] = {}
        with bar(search.name) as progress:
            for start in range(0, search.trials, ROUND):
                trials, chosen = propose.ask(min(ROUND, search.trials - start))
                judged = judge(evaluator, chosen)
                propose.tell(trials, judged)
                for candidate in judged:
                    found.setdefault(candidate["key"], candidate)
                progress(start + len(chosen), search.trials)
        table = finals(evaluator, pd.DataFrame(list(found.values())))
        outcome = Found(table.drop(columns="key"), evaluator.table(), evaluator.simulations)
        store.finish({ROWS: outcome.rows, CANDIDATES: outcome.candidates})
        return outcome


def judge(evaluator: Evaluator, chosen: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per candidate: its settings, objective, metrics at it, status and reason of rejection.

    The objective is the highest rate that meets the SLO (0 for none), or for a closed loop the throughput.
    """
    search = evaluator.search
    seeds = range(search.seed, search.seed + search.repeats)
    steps = evaluator.capacities(chosen, seeds) if search.rates else [0] * len(chosen)
    cells = [search.cell(candidate, max(step, 0)) for candidate, step in zip(chosen, steps, strict=True)]
    rows = evaluator.rows(cells, seeds)
    judged = []
    for number, (cell, candidate, step) in enumerate(zip(cells, chosen, steps, strict=True), 1):
        own = rows[rows["cell"] == number]
        metrics = {name: float(own[name].mean()) if name in own else float("nan") for name in SHOWN}
        row = {"key": cell.digest if not search.rates else search.cell(candidate, 0).digest, **candidate}
        row |= {"step": step, "objective": metrics[THROUGHPUT], **metrics, "status": FINISHED, "reason": ""}
        if search.rates:
            row["objective"] = search.rate_grid()[step] if step >= 0 else 0.0
        if (own["status"] == FAILED).any():
            row |= {"objective": float("nan"), "status": FAILED, "reason": own["error"][own["error"] != ""].iloc[0]}
        elif search.has_slo and not metrics["slo_attainment"] >= search.slo_share:
            at = f" at {search.rate_grid()[0]:g} requests/s, the lowest rate" if search.rates else ""
            met = (
                f"{metrics['slo_attainment']:.1%} of requests meet the SLO{at}; {search.slo_share:.1%} are asked for"
            )
            row |= {"status": REJECTED, "reason": met}
        judged.append(row)
    return judged


def finals(evaluator: Evaluator, table: pd.DataFrame) -> pd.DataFrame:
    """Return the candidates in order, after the best ones were simulated again with other seeds.

    Adds `final_objective`, `final_attainment`, `probability_best` and `front`, and sets status and reason: `chosen`,
    or `rejected` and why.
    """
    search = evaluator.search
    table["front"] = pareto_front(table["objective"].where(table["status"] == FINISHED).to_numpy(float),
                                  table[TPOT].to_numpy(float))  # fmt: skip
    table = table.assign(final_objective=np.nan, final_attainment=np.nan, probability_best=0.0)
    ranked = table[table["status"] == FINISHED].sort_values(["objective", TPOT], ascending=[False, True])
    best = ranked[: search.finalists]
    if best.empty:
        return table.sort_values(["status", "objective"], ascending=False, ignore_index=True)
    names = ["architecture", *search.space]
    chosen = [{name: plain(row[name]) for name in names} for _, row in best.iterrows()]
    share = search.slo_share if search.has_slo else 0.0
    objective, attainment = _compared(evaluator, chosen, best["step"].tolist(), share)
    means, met = objective.mean(axis=2), attainment.mean(axis=2)
    last, places = reached(met, share), np.arange(len(best))
    table.loc[best.index, "final_objective"] = np.where(last >= 0, means[places, last], 0.0)
    table.loc[best.index, "final_attainment"] = met[places, np.maximum(last, 0)]
    table.loc[best.index, "probability_best"] = probability_best(objective, attainment, share, search.seed)
    winner = best.index[int(np.argmax(scores(means, met, share)))]
    others = table.index[table["status"] == FINISHED]
    reasons = [_reason(search, table.loc[index], table.loc[winner]) for index in others]
    table.loc[others, "status"], table.loc[others, "reason"] = REJECTED, reasons
    if last.max() >= 0:
        table.loc[winner, "status"], table.loc[winner, "reason"] = CHOSEN, ""
    ahead = table["status"].map({CHOSEN: 0, REJECTED: 1}).fillna(2)
    keys = pd.DataFrame({"a": ahead, "b": -table["final_objective"].fillna(-1), "c": -table["objective"].fillna(-1)})
    return table.loc[keys.sort_values(["a", "b", "c"]).index].reset_index(drop=True)


def _again(
    evaluator: Evaluator, chosen: Sequence[Mapping[str, Any]], steps: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate finalists at steps of the rate grid with other seeds. Returns objective and attainment.

    Both are [finalists, steps, repeats]. A failed simulation attains nothing.
    """
    search = evaluator.search
    seeds = range(search.seed + OTHER_SEEDS, search.seed + OTHER_SEEDS + search.final_repeats)
    rows = evaluator.rows([search.cell(candidate, step) for candidate in chosen for step in steps], seeds)
    shape = len(chosen), len(steps), len(seeds)
    objective = rows["rate" if search.rates else THROUGHPUT].to_numpy(float).reshape(shape)
    met = rows["slo_attainment"].to_numpy(float) if search.has_slo else np.ones(len(rows))
    return objective, np.where(rows["status"] == FINISHED, met, 0.0).reshape(shape)


def _compared(
    evaluator: Evaluator, chosen: Sequence[Mapping[str, Any]], steps: Sequence[int], share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate finalists with other seeds, around the steps of the rate grid that they reached with the first ones.

    Returns objective and attainment, as `_again` does. With other seeds, they may reach less: the lowest step is one
    that all of them reach, if there is one.
    """
    count = len(evaluator.search.rate_grid())
    if not count:
        return _again(evaluator, chosen, [0])
    low, high = max(min(steps) - 2, 0), min(max(steps) + 3, count)
    while True:
        objective, attainment = _again(evaluator, chosen, range(low, high))
        if low == 0 or reached(attainment.mean(axis=2), share).min() >= 0:
            return objective, attainment
        low = max(low - 3, 0)


def _reason(search: Search, row: pd.Series, winner: pd.Series) -> str:
    what = "requests/s" if search.rates else "tokens/s"
    if np.isnan(row["final_objective"]):
        return f"{row['objective']:.4g} {what}, and {search.finalists} candidates have as much or more"
    if row["final_objective"] == 0:
        return f"with other seeds, {row['final_attainment']:.1%} of requests meet the SLO"
    than = f"{row['final_objective']:.4g} {what} with other seeds, and the chosen one {winner['final_objective']:.4g}"
    return f"{than}; better with a probability of {row['probability_best']:.2f}"


def plain(value: Any) -> Any:
    """Return a value of a table as Python's own kind."""
    return value.item() if isinstance(value, np.generic) else value
