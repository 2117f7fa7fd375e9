"""A bursty trace in the format of Azure's, served whole: nothing is lost, and Little's law holds over the record."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from engines.policy.architecture import BASELINE, PD, PDV, Architecture, Step
from engines.record.run import Run
from engines.workload.traces import read_trace
from sim.acceptance import PerRequestSpread
from sim.engine import simulate
from tests.sim.random_runs import costs

ROWS, SPAN_S = 400, 150.0


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bursts of requests whose prompts have a long tail, with the rows out of order."""
    draw = np.random.default_rng(3)
    bursts = np.repeat(np.sort(draw.uniform(0, SPAN_S, ROWS // 8)), 8)
    moments = np.datetime64("2023-11-16T18:17:03") + (1e6 * (bursts + draw.exponential(0.4, ROWS))).astype(
        "timedelta64[us]"
    )
    prompts, outputs = draw.lognormal(6.5, 1.0, ROWS).clip(3, 7437), draw.lognormal(2.5, 1.0, ROWS).clip(1, 1899)
    rows = zip(moments.astype(str), prompts.astype(int), outputs.astype(int), strict=True)
    lines = [f"{moment.replace('T', ' ')},{prompt},{output}\n" for moment, prompt, output in rows]
    path = tmp_path_factory.mktemp("trace") / "azure.csv.gz"
    path.write_bytes(gzip.compress(("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(lines)).encode()))
    return path


@pytest.mark.parametrize("layout", [BASELINE, PD, PDV, PD.replace(slots=4)], ids=["baseline", "pd", "pdv", "4 slots"])
def test_nothing_is_lost_and_littles_law_holds(trace: Path, layout: Architecture) -> None:
    if layout is not BASELINE:
        layout = layout.with_batch_limits({Step.PREFILL: 4, Step.DRAFT: 64, Step.VERIFY: 64, Step.DRAFT_VERIFY: 64})
    load = read_trace(trace)
    run = simulate(layout, load, costs("h100"), PerRequestSpread(0.8, 0.05))
    requests, steps = run.requests, run.steps
    assert len(requests) == len(load.requests) == ROWS
    assert (requests["status"] == "finished").all()
    asked = {request.id: (request.prompt_tokens, request.max_tokens, request.arrival_s) for request in load.requests}
    columns = ["prompt_tokens", "output_tokens", "arrival_s"]
    assert dict(zip(requests["request"], requests[columns].itertuples(index=False, name=None), strict=True)) == asked
    booked = steps.groupby("request")[["emitted", "accepted", "rejected", "discarded"]].sum()
    own = requests.set_index("request")
    assert (booked["emitted"] == own["output_tokens"]).all()
    assert (booked[["accepted", "rejected", "discarded"]].sum(axis=1) == own["drafted"]).all()
    assert set(steps["batch_id"]) == set(run.spans["batch_id"])
    _check_littles_law(run)


def _check_littles_law(run: Run) -> None:
    """The number of requests in the system, averaged over time, is the rate of arrivals times the mean latency."""
    arrival_s, finish_s = run.requests["arrival_s"].to_numpy(), run.requests["finish_s"].to_numpy()
    times = np.concatenate([arrival_s, finish_s])
    order = np.argsort(times, kind="stable")
    here = np.cumsum(np.repeat([1, -1], len(arrival_s))[order])
    assert here[-1] == 0
    assert here.min() >= 0
    mean_here = (here[:-1] * np.diff(times[order])).sum() / run.duration_s
    rate = len(arrival_s) / run.duration_s
    assert mean_here == pytest.approx(rate * (finish_s - arrival_s).mean())
