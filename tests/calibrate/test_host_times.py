"""The law of host time is found again in runs that were made with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibrate.contention import NoContention
from calibrate.host_times import host_batches, host_times
from calibrate.profile import HOST_COLUMNS
from engines.policy.architecture import PD, PDV, TARGET_ONLY, Step
from engines.record.run import Run
from engines.workload.workload import FixedLength, make_workload
from sim.acceptance import Independent
from sim.costs import CostModel
from sim.engine import simulate
from tests.calibrate.profiles import made_up

LAW = pd.DataFrame(
    [
        ("prefill", 0.7, 0.0, 0.5, 0.3, 0.10, 0.0),
        ("draft", 0.4, 0.005, 0.1, 0.3, 0.10, 0.0),
        ("verify", 0.4, 0.006, 0.2, 0.2, 0.10, 0.0),
        ("draft+verify", 0.2, 0.013, 0.3, 0.6, 0.12, 0.005),
    ],
    columns=HOST_COLUMNS,
)


def run_of(*spans: tuple[Any, ...]) -> Run:
    columns = ["batch_id", "stream", "step", "batch_size", "back_to_back", "dispatched_s", "start_s", "end_s"]
    frame = pd.DataFrame(spans, columns=[*columns, "completed_s"])
    return Run({}, pd.DataFrame(), pd.DataFrame(), frame.assign(draft_length=4))


def test_the_law_that_a_simulation_was_made_with_is_found_in_its_records() -> None:
    costs = CostModel(made_up(host_times=LAW), contention=NoContention(), extrapolate=True)
    both = {Step.DRAFT_VERIFY: 16}
    limits = ((PD, both), (TARGET_ONLY, both), (PDV, {Step.DRAFT: 16, Step.VERIFY: 16}))
    runs = [
        simulate(
            layout.with_batch_limits(most).replace(slots=clients, hybrid_at_or_below=0),
            make_workload(4 * clients, FixedLength(64), FixedLength(64), concurrency=clients),
            costs,
            Independent(0.7),
        )
        for layout, most in limits
        for clients in (1, 4, 16)
    ]
    off = host_batches(next(run for run in runs if run.info["architecture"]["name"] == "target-only"))
    assert set(off["step"]) == {"prefill", "verify"}
    found = host_times(runs).set_index("step")
    wanted = LAW.set_index("step")
    for step, batch in ((Step.DRAFT, 8), (Step.VERIFY, 8), (Step.DRAFT_VERIFY, 12), (Step.PREFILL, 1)):
        for woken in (0, 1):
            for beside in (0, 1):
                at = np.array([1, batch, woken, beside])
                before = [law.loc[step].iloc[:4] @ at for law in (found, wanted)]
                assert before[0] == pytest.approx(before[1], abs=0.12), step
        after = [law.loc[step].iloc[4:] @ [1, batch] for law in (found, wanted)]
        assert after[0] == pytest.approx(after[1], abs=0.02)


def test_what_the_host_does_beside_is_counted_at_the_dispatch() -> None:
    """Batch 1 is dispatched while 0 waits for the device, batch 2 while 0 is read, batch 3 while the others run."""
    run = run_of(
        (0, 0, "draft", 2, False, 0.0, 1.0, 3.0, 4.0),
        (1, 1, "verify", 1, True, 0.5, 1.5, 9.0, 9.5),
        (2, 2, "prefill", 1, True, 3.5, 5.0, 7.0, 7.5),
        (3, 0, "draft", 1, True, 6.0, 6.25, 6.5, 6.75),
    )
    found = host_batches(run).set_index("step")
    assert found["beside"].tolist() == [0, 1, 1, 0]
    assert found["before_ms"].tolist() == [1000, 1000, 1500, 250]
    assert found["after_ms"].tolist() == [1000, 500, 500, 250]


def test_a_wait_for_a_busy_stream_is_no_host_time() -> None:
    run = run_of((0, 0, "draft", 1, False, 0.0, 0.1, 2.0, 2.1), (1, 0, "verify", 1, False, 1.0, 2.0, 3.0, 3.1))
    found = host_batches(run)
    assert found["before_ms"].isna().tolist() == [False, True]
    assert found["after_ms"].notna().all()


def test_a_hiccup_is_not_the_law_and_a_step_that_never_ran_takes_the_law_of_all() -> None:
    spans = [(i, 0, "draft", 1, True, i, i + 0.0005, i + 0.5, i + 0.5001) for i in range(100)]
    spans[7] = (7, 0, "draft", 1, True, 7, 7.4, 7.5, 7.6)  # 400 ms where others take 0.5
    found = host_times([run_of(*spans)]).set_index("step")
    assert found.loc["draft", ["before_ms", "before_per_request_ms"]].sum() == pytest.approx(0.5, abs=0.02)
    assert found.loc["verify"].tolist() == found.loc["draft"].tolist()
