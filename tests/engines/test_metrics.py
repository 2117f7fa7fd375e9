"""What a run says, against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from engines.policy.architecture import BASELINE, PD, PDV, Segment
from engines.policy.draft_length import FixedDraftLength
from engines.policy.request import Emission, Request
from engines.policy.scheduler import Scheduler
from engines.record.metrics import (
    PARTS,
    decompose,
    device_utilisation,
    goodput,
    inter_token_latency,
    lane_busy,
    request_times,
    steady_throughput,
    steady_window,
    summary,
)
from engines.record.run import REQUEST_COLUMNS, SPAN_COLUMNS, STEP_COLUMNS, Recorder, Run, SegmentTime
from tests.driver import drive
from tests.engines.records import run_by_hand


def _run_of(latencies: list[float], output_tokens: list[int], ttft_s: float = 1.0) -> Run:
    """Requests that all arrive at 0, in a run of which nothing else is known."""
    requests = pd.DataFrame(index=range(len(latencies)), columns=REQUEST_COLUMNS).assign(
        request=range(len(latencies)), arrival_s=0.0, first_token_s=ttft_s, finish_s=latencies,
        output_tokens=output_tokens, drafted=0, accepted=0, status="finished",
    )  # fmt: skip
    return Run({}, requests, pd.DataFrame(columns=STEP_COLUMNS), pd.DataFrame(columns=SPAN_COLUMNS))


def test_a_decomposition_by_hand() -> None:
    parts = decompose(run_by_hand())
    expected = {
        0: {
            "dispatch_overhead": 0.2,
            "prefill": 0.8,
            "draft": 0.25,
            "wasted_drafts": 0.75,
            "verify": 0.5,
            "contention": 0.5,
        },
        1: {"prefill_queue": 0.5, "prefill": 2.0},
    }
    for request, named in expected.items():
        for part in PARTS:
            assert parts.loc[request, part] == pytest.approx(named.get(part, 0.0)), (request, part)
    assert parts["latency_s"].tolist() == [3.0, 2.5]


@pytest.mark.parametrize(
    ("k", "max_tokens", "right", "thrown_away_s", "used_s"),
    [
        (4, 9, {1: 0, 2: 4, 7: 4}, 1.0 + 0.0 + 0.5, 0.0 + 1.0 + 0.5),  # in the end two of four come too late
        (1, 4, {1: 0, 2: 1}, 1.0 + 0.0, 0.0 + 1.0),
    ],
)
def test_the_time_of_a_draft_is_thrown_away_with_its_tokens(
    k: int, max_tokens: int, right: dict[int, int], thrown_away_s: float, used_s: float
) -> None:
    """Drafts of 1 s each; `right` is how many of their tokens are, by the position where they begin."""
    architecture = PDV.replace(draft_length=FixedDraftLength(k), hybrid_at_or_below=0)
    request = Request(0, 10, max_tokens, 0.0)
    parts = decompose(drive(Scheduler(architecture), [request], matched=lambda _, position, k: right[position]))
    assert parts.loc[0, ["wasted_drafts", "draft"]].tolist() == pytest.approx([thrown_away_s, used_s])
    assert parts.loc[0, "verify"] == pytest.approx(len(right))


def test_a_record_without_solo_times_knows_of_no_contention() -> None:
    run = run_by_hand()
    run.spans["solo_s"] = np.nan
    parts = decompose(run)
    assert (parts["contention"] == 0).all()
    assert parts["verify"].tolist() == pytest.approx([1.0, 0.0])
    assert parts[PARTS].sum(axis=1).tolist() == pytest.approx(parts["latency_s"].tolist())


def test_waiting_for_a_shared_stream_is_told_from_hand_over() -> None:
    """Two workers of the baseline on one stream: the second starts when the first has ended."""
    scheduler, recorder = Scheduler(BASELINE), Recorder()
    for request in (Request(0, 10, 1, 0.0), Request(1, 10, 1, 0.0)):
        scheduler.submit(request, 0.0)
    first, second = scheduler.dispatch(0.0)
    for batch, start_s, completed_s in ((first, 0.1, 1.2), (second, 1.1, 2.2)):
        (ended,) = scheduler.complete(batch, [Emission()], completed_s)
        recorder.completed(batch, [SegmentTime(Segment.PREFILL_TARGET, start_s, start_s + 1.0, 1.0)], completed_s)
        recorder.ended(ended)
    parts = decompose(recorder.run({}))
    assert parts["stream_wait"].tolist() == pytest.approx([0.0, 1.1])
    assert parts["dispatch_overhead"].tolist() == pytest.approx([0.2, 0.1])
    assert parts[PARTS].sum(axis=1).tolist() == pytest.approx([1.2, 2.2])


def test_times_by_hand() -> None:
    times = request_times(run_by_hand())
    assert times.loc[0].tolist() == [1.0, 1.0, 3.0]  # two tokens in the two seconds after the first
    assert times.loc[1, ["ttft_s", "latency_s"]].tolist() == [2.5, 2.5]
    assert np.isnan(times.loc[1, "tpot_s"])


def test_steady_throughput_by_hand() -> None:
    """Two clients, five requests of two tokens, first token and second each from a batch of its own. Both are served
    from 2.0, when request 1 has its first token; requests 0, 1 and 2 end at 3, 4 and 6, so that the last is submitted
    at 6, and at 7 the client of request 3 finds none. Between 2 (left out) and 7 (counted) come 7 tokens."""
    first, second = [1.0, 2.0, 3.5, 5.0, 8.0], [3.0, 4.0, 6.0, 7.0, 9.0]
    requests = pd.DataFrame(index=range(5), columns=REQUEST_COLUMNS).assign(
        request=range(5), arrival_s=[0.0, 0.0, 3.0, 4.0, 6.0], first_token_s=first, finish_s=second,
        output_tokens=2, status="finished",
    )  # fmt: skip
    moments = first + second
    batches = range(len(moments))
    steps = pd.DataFrame(index=batches, columns=STEP_COLUMNS).assign(
        batch_id=batches, request=[*range(5)] * 2, emitted=1
    )
    spans = pd.DataFrame(index=batches, columns=SPAN_COLUMNS).assign(batch_id=batches, completed_s=moments)
    run = Run({"workload": {"concurrency": 2}}, requests, steps, spans)
    assert steady_window(run) == (2.0, 7.0)
    assert steady_throughput(run) == pytest.approx(6 / 5)
    for clients in (5, 9):  # the first client is dry at 3, before the last is served
        few = Run({"workload": {"concurrency": clients}}, requests, steps, spans)
        assert steady_window(few) == (8.0, 3.0)
        assert np.isnan(steady_throughput(few))
    assert np.isnan(steady_throughput(Run({}, requests, steps, spans)))  # an open loop
    unserved = requests.assign(first_token_s=[1.0, np.nan, *first[2:]])  # request 1 was given up at 4
    assert steady_window(Run(run.info, unserved, steps, spans)) == (4.0, 7.0)


def test_a_load_that_is_full_for_no_time_has_no_steady_throughput() -> None:
    run = drive(Scheduler(PD), [Request(0, 10, 1)], concurrency=1)
    run.info["workload"] = {"concurrency": 1}
    start_s, end_s = steady_window(run)
    assert start_s == end_s
    assert np.isnan(steady_throughput(run))


def test_a_summary_by_hand() -> None:
    numbers = summary(run_by_hand())
    assert numbers["throughput_tokens_per_s"] == pytest.approx(4 / 3)
    assert numbers["throughput_requests_per_s"] == pytest.approx(2 / 3)
    assert numbers["acceptance_rate"] == pytest.approx(1 / 4)
    assert numbers["acceptance_length"] == 2.0
    assert numbers["batch_size.verify"] == 1.0
    assert numbers["tpot_s.mean"] == 1.0


def test_busy_lanes_and_devices_by_hand() -> None:
    run = run_by_hand()
    busy = {"lane_busy.prefill": 2.8 / 3, "lane_busy.draft": 1 / 3, "lane_busy.verify": 1 / 3}
    assert lane_busy(run) == pytest.approx(busy)
    expected = {"running_at_least_1": 2.8 / 3, "running_at_least_2": 2 / 3, "running_at_least_3": 0.0}
    assert device_utilisation(run) == pytest.approx(expected)


def test_devices_are_counted_apart() -> None:
    """Two stages at once, each alone on its device, are not two stages on a device."""
    run = run_by_hand()
    parted = run.spans.assign(device=(run.spans["segment"] == Segment.VERIFY).astype(int))
    one, two, three = (f"running_at_least_{n}" for n in (1, 2, 3))
    expected = {
        one: (2.8 / 3 + 1 / 3) / 2, two: 0.5 / 3, three: 0.0,
        f"{one}.device_0": 2.8 / 3, f"{two}.device_0": 1.0 / 3, f"{three}.device_0": 0.0,
        f"{one}.device_1": 1 / 3, f"{two}.device_1": 0.0, f"{three}.device_1": 0.0,
    }  # fmt: skip
    assert device_utilisation(dataclasses.replace(run, spans=parted)) == pytest.approx(expected)


def test_a_device_on_which_nothing_ran_counts_as_idle() -> None:
    run = run_by_hand()
    lanes = [{"name": "decode", "device": 0}, {"name": "prefill", "device": 1}]
    shares = device_utilisation(dataclasses.replace(run, info={"architecture": {"lanes": lanes}}))
    assert shares["running_at_least_1"] == pytest.approx(2.8 / 3 / 2)
    assert shares["running_at_least_1.device_1"] == 0.0


def test_waits_between_groups_of_tokens_by_hand() -> None:
    assert inter_token_latency(run_by_hand()).tolist() == [2.0]


def test_quantiles_interpolate_linearly() -> None:
    numbers = summary(_run_of([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1]))
    assert numbers["latency_s.median"] == pytest.approx(2.5)
    assert numbers["latency_s.p90"] == pytest.approx(3.7)
    assert numbers["latency_s.p95"] == pytest.approx(3.85)
    assert numbers["latency_s.p99"] == pytest.approx(3.97)


def test_time_per_output_token_leaves_out_outputs_of_one_token() -> None:
    times = request_times(_run_of([2.0, 5.0, 3.0], [1, 5, 2]))
    assert times["tpot_s"].tolist() == pytest.approx([np.nan, 1.0, 2.0], nan_ok=True)
    assert summary(_run_of([2.0, 5.0, 3.0], [1, 5, 2]))["tpot_s.mean"] == pytest.approx(1.5)


def test_goodput_counts_requests_that_meet_both_objectives() -> None:
    run = _run_of([1.0, 5.0, 10.0], [1, 5, 4])  # time per token: none, 1 s, 3 s
    assert goodput(run, ttft_s=1.0, tpot_s=1.0) == pytest.approx(2 / 10)
    assert goodput(run, ttft_s=1.0, tpot_s=3.0) == pytest.approx(3 / 10)
    assert goodput(run, ttft_s=0.9, tpot_s=3.0) == 0.0


@pytest.mark.parametrize("architecture", [PD, PDV], ids=["pd", "pdv"])
def test_acceptance_length_is_one_more_than_the_drafts_that_match(architecture: object) -> None:
    run = drive(Scheduler(architecture), [Request(i, 10, 13, 0.0) for i in range(3)])  # type: ignore[arg-type]
    numbers = summary(run)
    assert numbers["acceptance_length"] == 3.0  # two of four drafts match in each of four steps
    assert numbers["acceptance_rate"] == 0.5


def test_a_verify_that_accepts_nothing_emits_one_token_and_counts() -> None:
    def matched(request: int, position: int, k: int) -> int:
        return k if position == 1 else 0

    numbers = summary(drive(Scheduler(PD), [Request(0, 10, 9, 0.0)], matched=matched))
    assert numbers["acceptance_length"] == pytest.approx((5 + 1 + 1 + 1) / 4)
    assert numbers["acceptance_rate"] == pytest.approx(4 / 16)


def test_a_run_of_less_than_a_second_has_a_throughput() -> None:
    run = _run_of([0.5], [3])
    assert summary(run)["throughput_tokens_per_s"] == pytest.approx(6.0)
    assert goodput(run, ttft_s=1.0, tpot_s=0.0) == pytest.approx(2.0)  # its tokens came before the first one did
    assert goodput(_run_of([0.5], [1]), ttft_s=1.0, tpot_s=0.1) == pytest.approx(2.0)  # one token waits for none


def test_a_run_that_finished_nothing_has_a_summary_and_an_empty_decomposition() -> None:
    run = drive(Scheduler(PD), [Request(0, 10, 9, 0.0)], cancel=[(2.5, 0)])
    numbers = summary(run)
    assert numbers["throughput_tokens_per_s"] == 0.0
    assert np.isnan(numbers["latency_s.mean"])
    assert decompose(run).empty
