"""Predict what a fleet would do with a workload, replica by replica."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from calibrate.profile import Profile
from engines.policy.architecture import Architecture, device_of
from engines.policy.batch import Batch
from engines.policy.request import Request, Status
from engines.policy.request_state import RequestState
from engines.record.run import Recorder, Run, SegmentTime
from engines.record.totals import Totals
from engines.workload.workload import Workload
from sim.acceptance import AcceptanceSource
from sim.conditions import Conditions
from sim.cost_protocols import DIMENSIONS, Costs
from sim.deployment import Deployment, Progress, counts_of
from sim.engine import asked, cost_model, described
from sim.replica import Bookkeeper, Replica
from sim.routers import Fleet

RATES = ("throughput_", "goodput_", "lane_busy.", "running_at_least_")
"""Metrics that are divided by the duration of a run."""


class FleetRun(NamedTuple):
    """run: the record of all replicas, if one was asked for. metrics: see simulate_fleet."""

    run: Run | None
    metrics: pd.DataFrame


def simulate_fleet(
    fleet: Fleet,
    architecture: Architecture,
    workload: Workload,
    costs: Profile | Costs,
    acceptance: AcceptanceSource,
    *,
    record: bool = True,
    info: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    objectives: tuple[float, float] | None = None,
    **more: Any,
) -> FleetRun:
    """Return the record of a fleet, as sim.engine.simulate does, and the metrics of the fleet and of its replicas.

    The metrics have a row for the fleet ("fleet") and one per replica ("0", "1", ...). The columns are `requests`
    (that the router gave to it), `finished`, `rejected`, `output_tokens`, `duration_s`, `mean_in_system` (requests,
    averaged over time), `segments`, those of them beyond the profile (`beyond_profile`, by dimension, and their
    share), and those of engines.record.metrics.summary. All rates and shares of time are over the duration of the
    fleet's run, so the throughputs of the replicas add up.

    record: False keeps none. objectives: a TTFT and a TPOT in seconds, for which to add goodput_requests_per_s. more:
    seed, jitter, max_context and prefill_tokens, as for `simulate`. Raises what `simulate` does.
    """
    conditions = Conditions(cost_model(costs), acceptance, **more)
    deployment = Deployment(architecture, workload, conditions, progress, fleet)
    replicas = deployment.replicas
    whole = Totals(deployment.running)
    parts = [Totals(replica.running) for replica in replicas]
    recorder, tapes = Recorder(), dict[int, np.ndarray]()
    shared: list[Bookkeeper] = [whole, recorder] if record else [whole]
    deployment.run([_Several([part, *shared]) for part in parts], tapes if record else None)
    duration_s = _duration_s(whole.table)
    found = whole.summary(asked(architecture, workload, fleet), objectives)
    rows = {"fleet": _counts(whole.table, replicas, duration_s) | found}
    for number, (replica, part) in enumerate(zip(replicas, parts, strict=True)):
        # A replica has no clients of its own, and so no steady window.
        found = part.summary({"architecture": replica.architecture.to_dict()}, objectives)
        longer = duration_s / _duration_s(part.table)
        found |= {name: value / longer for name, value in found.items() if name.startswith(RATES)}
        rows[str(number)] = _counts(part.table, [replica], duration_s) | found
    metrics = pd.DataFrame.from_dict(rows, orient="index").rename_axis("replica")
    made = {**described(architecture, workload, conditions, fleet), **deployment.beyond(), **(info or {})}
    return FleetRun(recorder.run(made, tapes) if record else None, metrics)


class _Several:
    """Bookkeepers that are told the same."""

    def __init__(self, bookkeepers: Sequence[Bookkeeper]) -> None:
        self._bookkeepers = bookkeepers

    def completed(self, batch: Batch, segments: Iterable[SegmentTime], completed_s: float) -> None:
        for bookkeeper in self._bookkeepers:
            bookkeeper.completed(batch, segments, completed_s)

    def ended(self, state: RequestState) -> None:
        for bookkeeper in self._bookkeepers:
            bookkeeper.ended(state)

    def rejected(self, request: Request, now: float, error: Exception) -> None:
        for bookkeeper in self._bookkeepers:
            bookkeeper.rejected(request, now, error)


def _duration_s(requests: pd.DataFrame) -> float:
    """Return the seconds from the first arrival to the last finish; nan without requests."""
    return float(requests["finish_s"].max() - requests["arrival_s"].min())


def _counts(requests: pd.DataFrame, replicas: Sequence[Replica], duration_s: float) -> dict[str, float]:
    """Return counts of the requests and segments of a fleet or of one replica. duration_s: of the fleet."""
    finished = requests["status"] == Status.FINISHED
    request_seconds = sum(replica.population.request_seconds for replica in replicas)
    counted = counts_of([replica.segments for replica in replicas])
    segments, beyond = counted["segments"], counted["beyond"]
    return {
        "requests": float(len(requests)),
        "finished": float(finished.sum()),
        "rejected": float((~finished).sum()),
        "output_tokens": float(requests["output_tokens"].sum()),
        "duration_s": duration_s,
        "mean_in_system": request_seconds / duration_s if duration_s > 0 else float("nan"),
        "segments": float(segments),
        "beyond_profile": float(beyond),
        "beyond_profile_share": beyond / segments if segments else float("nan"),
        **{f"beyond_profile.{name}": float(counted[name]) for name in DIMENSIONS},
    }


def replica_of(run: Run) -> pd.Series:
    """Return the replica that served each request (index) of a fleet's record; without those that were rejected."""
    lanes = run.info["architecture"]["lanes"]
    width = device_of(1, 0, [lane["device"] for lane in lanes])
    device = run.steps["batch_id"].map(run.spans.drop_duplicates("batch_id").set_index("batch_id")["device"])
    return (device.groupby(run.steps["request"]).first() // width).rename("replica")
