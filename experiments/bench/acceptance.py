"""Which model of acceptance matters for what: loads of live runs, simulated with tapes and with models of them.

Every load is simulated with tapes and with each model, with the same seeds, so a difference is the model's. Models
are fitted to the tapes that they stand in for, at the draft length of the load.

Example: python -m experiments.bench.acceptance --profile results/h100/fidelity/profile
    --live results/h100/fidelity/live --masks results/demo-cpu/masks.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from rich.table import Table

from calibrate.acceptance import acceptance_table
from calibrate.profile import Profile
from engines.pairs.permutation import PREFIX, parse_pair
from engines.policy.architecture import Architecture
from engines.record.masks import read_masks
from engines.record.run import Run
from experiments.compare.report import results_console
from experiments.runner.cells import load_runs
from experiments.runner.predict import replayed
from sim.acceptance import AcceptanceSource, PerPosition, Tapes
from sim.acceptance_fits import MODELS, fit_markov, fit_tapes
from sim.costs import CostModel
from sim.engine import summarise

METRICS = {"throughput_tokens_per_s": "throughput", "latency_s.median": "P50", "latency_s.p95": "P95"}
Row = dict[str, object]
TAPE, NOISE = "tape", "other seeds"


def models_of(tapes: Mapping[int, np.ndarray], k: int) -> dict[str, AcceptanceSource]:
    """Return the models fitted to tapes at draft length k, by name.

    "length" has the same acceptance length and the least variance, as vLLM resolves synthetic_acceptance_length.
    """
    accepted = float(acceptance_table(tapes.values(), k)["rate"].sum())
    least = tuple(float(np.clip(accepted - position, 0.0, 1.0)) for position in range(k))
    fitted: dict[str, AcceptanceSource] = {name: fit_tapes(tapes, name, k) for name in MODELS}
    return {**fitted, "chain": fit_markov(tapes), "length": PerPosition(least)}


def pair_of(live: Run) -> str:
    """Return the name of a run's pair: of a permutation pair, its alphas."""
    pair = str(live.info.get("pair"))
    return f"alpha {', '.join(f'{a:g}' for a in parse_pair(pair).alphas)}" if pair.startswith(PREFIX) else pair


def rows_of(live: Run, masks: Mapping[int, np.ndarray] | None, costs: CostModel, seeds: Sequence[int]) -> list[Row]:
    """Simulate the load of a live run with its own tapes and with masks, and each model of them.

    Returns one row per simulation.
    """
    architecture, workload = Architecture.from_dict(live.info["architecture"]), replayed(live)
    kinds = {pair_of(live): Tapes.recorded_by(live)}
    if masks is not None:
        kinds["masks"] = Tapes(masks)
    rows = []
    for kind, source in kinds.items():
        used = {request.id: source.tapes[request.id][: request.max_tokens] for request in workload.requests}
        sources = {TAPE: source, **models_of(used, architecture.draft_length.maximum)}
        for model, acceptance in sources.items():
            for seed in seeds:
                found = summarise(
                    architecture, workload, costs, acceptance, seed=seed,
                    max_context=live.info.get("max_context"), prefill_tokens=live.info.get("prefill_tokens"),
                )  # fmt: skip
                rows.append({"tapes": kind, "run": live.name, "model": model, "seed": seed,
                             **{name: found[metric] for metric, name in METRICS.items()}})  # fmt: skip
    return rows


def errors(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, per kind of tapes and model, the error of the mean over seeds, in percent of the tapes'.

    Each metric has its mean over runs (bias) and its mean absolute value. The row NOISE is how far a single run of
    the independent model lies from its mean over seeds (standard deviation): smaller errors mean nothing.
    """
    names = list(METRICS.values())
    means = rows.groupby(["tapes", "run", "model"], sort=False)[names].mean()
    taped = means.xs(TAPE, level="model")
    relative = 100 * (means / taped - 1).drop(TAPE, level="model")
    parts = {"bias": relative, "absolute": relative.abs()}
    found = pd.concat({part: e.groupby(["tapes", "model"], sort=False).mean() for part, e in parts.items()}, axis=1)
    one = rows[rows["model"] == "independent"].groupby(["tapes", "run"], sort=False)[names]
    noise = (100 * one.std() / one.mean()).groupby("tapes", sort=False).mean()
    for kind, row in noise.iterrows():
        for name in names:
            found.loc[(kind, NOISE), ("absolute", name)] = row[name]
    return found.swaplevel(axis=1)[names].sort_index(level="tapes", sort_remaining=False)


def report(found: pd.DataFrame) -> Table:
    """Return the errors as a table: bias (mean absolute error) per metric."""
    table = Table("tapes", "model", *(f"{name} %" for name in METRICS.values()))
    for row in found.reset_index().to_dict("records"):
        signed = "" if row["model", ""] == NOISE else "{:+.1f} "
        cells = [
            signed.format(row[name, "bias"]) + f"({row[name, 'absolute']:.1f})" for name in METRICS.values()
        ]  # fmt: skip
        table.add_row(row["tapes", ""], row["model", ""], *cells)
    return table


def study(lives: Iterable[Run], profile: Profile, masks: Mapping[int, np.ndarray] | None, seeds: int) -> pd.DataFrame:
    """Simulate everything. Returns one row per simulation."""
    costs = CostModel(profile, extrapolate=True)
    made = Parallel(n_jobs=-1)(delayed(rows_of)(live, masks, costs, range(seeds)) for live in lives)
    return pd.DataFrame([row for rows in made for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", type=Path, required=True, help="folder of the profile")
    parser.add_argument("--live", type=Path, action="append", required=True, help="folder of live runs; repeatable")
    parser.add_argument("--masks", type=Path, help="recorded masks of real text, as JSON lines")
    parser.add_argument("--seeds", type=int, default=3, help="simulations of each load and model (default 3)")
    parser.add_argument("--out", type=Path, help="CSV file for the errors")
    given = parser.parse_args()
    lives = [run for folder in given.live for run in load_runs("live", folder)]
    masks = None if given.masks is None else read_masks(given.masks)
    found = errors(study(lives, Profile.load(given.profile), masks, given.seeds))
    results_console().print(report(found))
    if given.out is not None:
        flat = found.set_axis([" ".join(column) for column in found.columns], axis=1)
        flat.reset_index().to_csv(given.out, index=False, float_format="%.3f")


if __name__ == "__main__":
    main()
