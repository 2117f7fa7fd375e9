"""One simulated run of a sweep, and what its rows say about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import InputError
from engines.policy.architecture import Architecture
from engines.record.metrics import goodput, summary
from engines.record.run import Run
from experiments.runner.cells import keep
from experiments.runner.config import WorkloadConfig
from experiments.runner.predict import AcceptanceChoice, Prediction, predict, predict_totals
from experiments.sweep.cells import workload_of
from sim.engine import asked
from sim.routers import Fleet

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
    fleet: Fleet
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
        run, shared = simulated(simulation, settings)
        return [
            {"fingerprint": row, "error": "", **shared, **attainment(run, objective)}
            for row, objective in simulation.rows
        ]
    except InputError as error:
        said = str(error)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    return [{"fingerprint": row, "error": " ".join(said.split())} for row, _ in simulation.rows]


def simulated(simulation: Simulation, settings: Prediction) -> tuple[Run, dict[str, float]]:
    """Return the run and its metrics.

    The record is kept if it is asked for; otherwise, there is none, and the run has what `goodput` reads. The metrics
    are the same. Raises InputError, also if no request finished.
    """
    workload = workload_of(simulation.workload, simulation.load, simulation.seed)
    chosen = settings.with_seed(simulation.seed)
    chosen.acceptance = simulation.acceptance
    if simulation.record is None:
        totals, segments = predict_totals(simulation.architecture, workload, chosen, simulation.fleet)
        info = asked(simulation.architecture, workload, simulation.fleet)
        run = totals.run(info)
        _require_finished(run, totals.error)
        found = totals.summary(info)
        return run, metrics(run, found, segments)
    run = predict(simulation.architecture, workload, chosen, fleet=simulation.fleet)
    _require_finished(run, next((error for error in run.requests["error"] if error), ""))
    keep(run, simulation.record, simulation.record.name)
    return run, metrics(run, summary(run), run.info.get("beyond_profile", {"segments": len(run.spans), "beyond": 0}))


def _require_finished(run: Run, error: str) -> None:
    if run.finished.empty:
        raise InputError("requests", len(run.requests), f"none finished; the first error: {error}")


def metrics(run: Run, found: Mapping[str, float], segments: Mapping[str, int]) -> dict[str, float]:
    """Return the metrics of a row.

    found: engines.record.metrics.summary of the run. segments: how many it ran (`segments`), and how many of them
    lie beyond the profile (`beyond`).
    """
    replicas = run.info.get("replicas", 1)
    workers = {lane["name"]: replicas * lane["workers"] for lane in run.info["architecture"]["lanes"]}
    finished = len(run.finished)
    return {
        "finished": float(finished),
        "rejected": float(len(run.requests) - finished),
        "duration_s": run.duration_s,
        **found,
        **{f"utilisation.{lane}": found.get(f"lane_busy.{lane}", 0.0) / count for lane, count in workers.items()},
        "beyond_profile": float(segments["beyond"]),
        "beyond_profile_share": segments["beyond"] / segments["segments"],
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


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of metrics in the order of a table: what is asked for most first, then by name."""
    first = ("finished", "rejected", "duration_s", "beyond_profile", "throughput", "goodput", "slo", "ttft", "tpot",
             "latency", "steady", "utilisation")  # fmt: skip
    ranks: Mapping[str, int] = {name: rank for rank, name in enumerate(first)}

    def place(name: str) -> tuple[int, str]:
        return min((rank for start, rank in ranks.items() if name.startswith(start)), default=len(ranks)), name

    return sorted(names, key=place)
