"""One simulated run of a sweep, and what its rows say about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from calibrate.profile import Profile
from engines.errors import InputError
from engines.policy.architecture import Architecture
from engines.record.metrics import goodput, summary
from engines.record.run import Run
from experiments.runner.cells import keep
from experiments.runner.config import WorkloadConfig
from experiments.runner.predict import AcceptanceChoice, Prediction, predict
from experiments.sweep.cells import workload_of
from sim.costs import TOLERANCE

Row = dict[str, Any]
"""`fingerprint`, `error` ("" unless the simulation failed) and metrics by name."""


@dataclass(frozen=True)
class Objective:
    """What a request has to meet, in seconds; None is not asked for."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True)
class Simulation:
    """One run to simulate.

    rows: fingerprint and objective of every row that it is for, since an objective changes nothing in a run. work:
    its expected share of all the work, in any unit. record: folder to keep the run in.
    """

    architecture: Architecture
    workload: WorkloadConfig
    load: tuple[str, float] | None
    acceptance: AcceptanceChoice
    seed: int
    rows: tuple[tuple[str, Objective], ...]
    work: float
    record: Path | None = None


def rows_of(simulation: Simulation, settings: Prediction) -> list[Row]:
    """Simulate, and return one result per row. An error becomes the rows' `error`, whatever it is."""
    try:
        run = simulated(simulation, settings)
        shared = {**metrics(run), **beyond_profile(run, settings.profile)}
        return [
            {"fingerprint": row, "error": "", **shared, **attainment(run, objective)}
            for row, objective in simulation.rows
        ]
    except InputError as error:
        said = str(error)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return [{"fingerprint": row, "error": " ".join(said.split())} for row, _ in simulation.rows]


def simulated(simulation: Simulation, settings: Prediction) -> Run:
    """Return the run, and keep its record if asked to. Raises InputError, also if no request finished."""
    workload = workload_of(simulation.workload, simulation.load, simulation.seed)
    chosen = settings.with_seed(simulation.seed)
    chosen.acceptance = simulation.acceptance
    run = predict(simulation.architecture, workload, chosen)
    if run.finished.empty:
        errors = run.requests.loc[run.requests["error"] != "", "error"]
        raise InputError("requests", len(run.requests), f"none finished; the first error: {next(iter(errors), '')}")
    if simulation.record is not None:
        keep(run, simulation.record, simulation.record.name)
    return run


def metrics(run: Run) -> dict[str, float]:
    """Return the metrics of engines.record.metrics.summary, counts of requests, and the utilisation of each lane."""
    found = summary(run)
    workers = {lane["name"]: lane["workers"] for lane in run.info["architecture"]["lanes"]}
    return {
        "finished": float(len(run.finished)),
        "rejected": float(len(run.requests) - len(run.finished)),
        "duration_s": run.duration_s,
        **found,
        **{f"utilisation.{lane}": found.get(f"lane_busy.{lane}", 0.0) / count for lane, count in workers.items()},
    }


def attainment(run: Run, objective: Objective) -> dict[str, float]:
    """Return the goodput, and the fraction of all requests that met the objective; nothing if there is none."""
    if objective == Objective():
        return {}
    bounds = (math.inf if value is None else value for value in dataclasses.astuple(objective))
    good = goodput(run, *bounds)
    return {
        "goodput_requests_per_s": good,
        "slo_attainment": round(good * run.duration_s) / len(run.requests),
    }


def beyond_profile(run: Run, profile: Profile) -> dict[str, float]:
    """Return how many segments, and which share of them, lie outside what the profile measured.

    That is a draft length outside its range, or a batch, prompt or context more than 10% above it: what is refused
    unless extrapolation is asked for.
    """
    spans, outside = run.spans, 0
    measured: Iterable[tuple[Any, pd.DataFrame]] = profile.stage_costs.groupby("segment")
    for segment, points in measured:
        own = spans[spans["segment"] == segment]
        load = "tokens" if str(segment).startswith("prefill") else "context_tokens"
        low, high = points["draft_length"].min(), points["draft_length"].max()
        wrong = (own["draft_length"] < low) | (own["draft_length"] > high)
        for column in ("batch_size", load):
            wrong |= own[column] > points[column].max() * (1 + TOLERANCE)
        outside += int(wrong.sum())
    return {"beyond_profile": float(outside), "beyond_profile_share": outside / len(spans)}


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of metrics in the order of a table: what is asked for most first, then by name."""
    first = ("finished", "rejected", "duration_s", "beyond_profile", "throughput", "goodput", "slo", "ttft", "tpot",
             "latency", "steady", "utilisation")  # fmt: skip
    ranks: Mapping[str, int] = {name: rank for rank, name in enumerate(first)}

    def place(name: str) -> tuple[int, str]:
        return min((rank for start, rank in ranks.items() if name.startswith(start)), default=len(ranks)), name

    return sorted(names, key=place)
