"""A fleet: every request is served once, by one replica, and the replicas do not touch one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engines.errors import InputError
from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Step
from engines.record.metrics import summary
from engines.record.run import Run
from engines.workload.workload import LogNormalLength, UniformLength, Workload, make_workload
from sim.acceptance import Independent
from sim.engine import simulate
from sim.fleet import FleetRun, replica_of, simulate_fleet
from sim.routers import ROUTERS, Fleet
from tests.sim.random_runs import costs, digest, random_run
from tests.sim.runs import CLOSED, COSTS, OPEN, QUIET

BUSY = make_workload(100, UniformLength(20, 400), UniformLength(1, 30), rate=60.0, seed=2)
TWO_DEVICES = PDV.replace(
    lanes=tuple(replace(lane, device=2 * (lane.name == "verify")) for lane in PDV.lanes), hybrid_at_or_below=0
)
FLEETS = [Fleet(replicas, router) for replicas in (2, 5) for router in ROUTERS]


def served(fleet: Fleet, layout: Architecture = PDV, load: Workload = BUSY, **options: Any) -> FleetRun:
    return simulate_fleet(fleet, layout, load, options.pop("costs", COSTS), Independent(0.7), **options)


@pytest.mark.parametrize("seed", range(8))
def test_a_fleet_of_one_is_the_engine_alone(seed: int) -> None:
    def of_one(*args: Any, **options: Any) -> FleetRun:
        return simulate_fleet(Fleet(), *args, **options)

    alone, fleet = random_run(seed), random_run(seed, of_one)
    assert digest(fleet.run) == digest(alone)
    assert fleet.run.info == alone.info
    metrics = fleet.metrics.drop(columns=["steady_throughput_tokens_per_s", "steady_s"])  # of the fleet only
    assert metrics.loc["0"].equals(metrics.loc["fleet"])


@pytest.mark.parametrize("fleet", FLEETS, ids=str)
@pytest.mark.parametrize("layout", [BASELINE, PD, TWO_DEVICES], ids=["baseline", "pd", "two devices"])
@pytest.mark.parametrize("load", [CLOSED, BUSY], ids=["closed", "open"])
def test_every_request_is_served_once_by_one_replica(fleet: Fleet, layout: Architecture, load: Workload) -> None:
    run, metrics = served(fleet, layout, load)
    requests, steps, spans = run.requests, run.steps, run.spans
    assert sorted(requests["request"]) == [request.id for request in load.requests]
    assert (requests["status"] == "finished").all()
    asked = [request.max_tokens for request in load.requests]
    assert requests["output_tokens"].tolist() == asked
    booked = steps.groupby("request")[["emitted", "accepted", "rejected", "discarded"]].sum()
    assert booked["emitted"].tolist() == asked
    assert (booked.sum(axis=1) - booked["emitted"] == requests.set_index("request")["drafted"]).all()
    assert not spans.duplicated(["batch_id", "segment"]).any()
    width = max(layout.devices) + 1
    replicas = (spans.set_index("batch_id")["device"] // width).groupby("batch_id").agg(["min", "max"])
    assert (replicas["min"] == replicas["max"]).all()  # a batch runs on one replica
    steps = steps.assign(replica=steps["batch_id"].map(replicas["min"]))
    assert (steps.groupby("request")["replica"].nunique() == 1).all()
    chosen = replica_of(run)
    counts = chosen.value_counts().reindex(range(fleet.replicas), fill_value=0)
    own = metrics.drop("fleet")
    assert own["requests"].tolist() == counts.tolist()
    for name in ("requests", "finished", "rejected", "output_tokens", "mean_in_system"):
        assert own[name].sum() == pytest.approx(metrics.loc["fleet", name])
    for name in ("throughput_tokens_per_s", "throughput_requests_per_s"):
        assert own[name].sum() == pytest.approx(metrics.loc["fleet", name])
    assert own["running_at_least_1"].mean() == pytest.approx(metrics.loc["fleet", "running_at_least_1"])


@pytest.mark.parametrize("fleet", FLEETS, ids=str)
@pytest.mark.parametrize("load", [CLOSED, BUSY], ids=["closed", "open"])
def test_littles_law_holds_for_every_replica_and_the_fleet(fleet: Fleet, load: Workload) -> None:
    run, metrics = served(fleet, load=load)
    assert metrics.loc["fleet", "mean_in_system"] == pytest.approx(_mean_in_system(run.requests, run.duration_s))
    for number, own in run.requests.groupby(run.requests["request"].map(replica_of(run))):
        row = metrics.loc[str(number)]
        assert row["mean_in_system"] == pytest.approx(_mean_in_system(own, run.duration_s))
        assert row["mean_in_system"] == pytest.approx(row["throughput_requests_per_s"] * row["latency_s.mean"])


@pytest.mark.parametrize("seed", range(100, 116))
def test_random_fleets_lose_nothing(seed: int) -> None:
    """Any layout, limits, load, acceptance, context and router."""
    fleet = FLEETS[seed % len(FLEETS)]
    (_, load), (run, metrics) = random_run(
        seed, lambda *given, **options: (given[:2], simulate_fleet(fleet, *given, **options))
    )
    requests, steps = run.requests.set_index("request"), run.steps
    assert sorted(requests.index) == [request.id for request in load.requests]
    served = requests[requests["status"] == "finished"]
    assert (requests.drop(served.index)["status"] == "rejected").all()
    assert replica_of(run).index.tolist() == served.index.tolist()
    booked = steps.groupby("request")[["emitted", "accepted", "rejected", "discarded"]].sum()
    assert (booked["emitted"] == served["output_tokens"]).all()
    assert (booked.sum(axis=1) - booked["emitted"] == served["drafted"]).all()
    row = metrics.loc["fleet"]
    assert (row["requests"], row["finished"]) == (len(requests), len(served))
    assert row["output_tokens"] == served["output_tokens"].sum()
    assert row["mean_in_system"] == pytest.approx(_mean_in_system(served, run.duration_s))
    assert row["mean_in_system"] == pytest.approx(row["throughput_requests_per_s"] * row["latency_s.mean"])


def _mean_in_system(requests: pd.DataFrame, duration_s: float) -> float:
    """Count the requests at every arrival and finish, and integrate the count."""
    times = np.concatenate([requests["arrival_s"], requests["finish_s"]])
    order = np.argsort(times, kind="stable")
    here = np.cumsum(np.repeat([1, -1], len(requests))[order])
    return float((here[:-1] * np.diff(times[order])).sum() / duration_s)


@pytest.mark.parametrize("fleet", [Fleet(), *FLEETS], ids=str)
@pytest.mark.parametrize(
    "layout", [PD.replace(queue_limit=1, slots=2), TWO_DEVICES], ids=["queue limit", "two devices"]
)
def test_the_metrics_are_those_of_the_record_with_or_without_one(fleet: Fleet, layout: Architecture) -> None:
    objectives = (0.5, 0.05)
    run, metrics = served(fleet, layout, objectives=objectives)
    none, without = simulate_fleet(fleet, layout, BUSY, COSTS, Independent(0.7), objectives=objectives, record=False)
    assert none is None
    pd.testing.assert_frame_equal(without, metrics, check_exact=True)
    expected = summary(run)
    assert {name: metrics.loc["fleet", name] for name in expected} == pytest.approx(expected, rel=0, nan_ok=True)
    rejected = int((run.requests["status"] == "rejected").sum())
    assert metrics.loc["fleet", "rejected"] == rejected
    assert (rejected > 0) == (layout.queue_limit is not None and fleet.replicas < 5)


def test_round_robin_gives_each_replica_its_share_as_if_it_were_alone() -> None:
    run, _ = served(Fleet(3), PD, OPEN, jitter=False)
    assert (replica_of(run) == run.requests["request"] % 3).all()
    for number in range(3):
        share = replace(OPEN, requests=OPEN.requests[number::3])
        alone = simulate(PD, share, COSTS, Independent(0.7), jitter=False).requests.set_index("request")
        ours = run.requests.set_index("request").loc[alone.index]
        for column in ("first_token_s", "finish_s"):
            assert ours[column].tolist() == pytest.approx(alone[column].tolist())


def test_least_loaded_chooses_the_replica_with_the_fewest_requests() -> None:
    run, _ = served(Fleet(3, "least-loaded"))
    requests = run.requests.assign(replica=replica_of(run).to_numpy())
    for row in requests.itertuples():
        here = requests[(requests["arrival_s"] < row.arrival_s) & (requests["finish_s"] > row.arrival_s)]
        counts = here["replica"].value_counts().reindex(range(3), fill_value=0).tolist()
        assert row.replica == counts.index(min(counts)), row.request


def test_least_loaded_is_faster_than_round_robin_when_lengths_differ() -> None:
    load = make_workload(250, LogNormalLength(100, 0.5, 10, 400), LogNormalLength(40, 1.5, 1, 900), rate=14.0, seed=3)
    latencies = {
        router: served(Fleet(4, router), BASELINE, load, costs=QUIET).metrics.loc["fleet", "latency_s.mean"]
        for router in ROUTERS
    }
    assert latencies["least-loaded"] < 0.9 * latencies["round-robin"]


def test_replicas_draw_durations_of_their_own() -> None:
    same = replace(OPEN, requests=tuple(replace(r, prompt_tokens=50, max_tokens=20) for r in OPEN.requests[:2]))
    same = replace(same, requests=tuple(replace(request, arrival_s=0.0) for request in same.requests))
    run, _ = served(Fleet(2), PD, same)
    first = run.spans[run.spans["segment"] == "prefill_target"]
    assert first["device"].tolist() in ([0, 1], [1, 0])
    assert first["solo_s"].nunique() == 2


def test_idle_replicas_count_as_idle() -> None:
    load = replace(OPEN, requests=OPEN.requests[:2])
    _, metrics = served(Fleet(4), load=load)
    assert metrics["requests"].tolist() == [2, 1, 1, 0, 0]
    busy = metrics.drop("fleet")["running_at_least_1"]
    assert busy.tolist()[2:] == [0.0, 0.0] or busy.isna().tolist()[2:] == [True, True]
    assert metrics.loc["fleet", "running_at_least_1"] == pytest.approx(busy.fillna(0).mean())
    assert metrics["throughput_tokens_per_s"].fillna(0).tolist()[3:] == [0.0, 0.0]


def test_a_fleets_record_can_be_saved_and_read(tmp_path: Path) -> None:
    run, _ = served(Fleet(3, "least-loaded"), TWO_DEVICES)
    again = Run.load(run.save(tmp_path / "fleet"))
    assert again.info["replicas"] == 3
    assert again.info["router"] == "least-loaded"
    assert summary(again) == pytest.approx(summary(run), nan_ok=True)
    assert replica_of(again).equals(replica_of(run))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fleet(0), "replicas = 0: use a whole number of at least 1"),
        (lambda: Fleet(2, "random"), "router = 'random': use round-robin, least-loaded"),
        (lambda: served(Fleet(334), TWO_DEVICES), "replicas = 334: use 333 or fewer"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_fleet_serves_more_than_one_engine_can() -> None:
    """What one replica serves in the end, four serve in little more than the time that the requests arrive in."""
    layout = PD.with_batch_limits({Step.PREFILL: 4, Step.DRAFT_VERIFY: 64})
    load = make_workload(400, UniformLength(100, 400), UniformLength(20, 60), rate=200.0, seed=2)
    one, four = (
        simulate_fleet(Fleet(n), layout, load, costs("h100"), Independent(0.7), record=False).metrics.loc["fleet"]
        for n in (1, 4)
    )
    assert four["ttft_s.mean"] < one["ttft_s.mean"] / 2
    assert four["duration_s"] < one["duration_s"] - 0.5
