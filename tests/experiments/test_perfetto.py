"""The exported trace is what its viewers accept."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from engines.record.run import Run
from experiments.figures.perfetto import REQUESTS_PROCESS, export
from tests.experiments import synthetic


@pytest.fixture(scope="module", params=["baseline", "pd", "pdv"])
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[dict]]:
    run = synthetic.simulated(request.param)
    path: Path = export(run, tmp_path_factory.mktemp("trace") / "deep" / "trace.json")
    return run, json.loads(path.read_text())["traceEvents"]


def test_every_span_is_a_slice_with_its_batch(traced: tuple[Run, list[dict]]) -> None:
    run, events = traced
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == len(run.spans)
    found = Counter((e["args"]["batch_id"], e["name"], e["ts"], e["dur"]) for e in slices)
    for span in run.spans.itertuples():
        start, end = round(span.start_s * 1e6), round(span.end_s * 1e6)
        assert found[span.batch_id, span.segment, start, end - start] == 1
    assert all(len(e["args"]["requests"]) == e["args"]["batch_size"] for e in slices)


def test_times_never_go_back(traced: tuple[Run, list[dict]]) -> None:
    times = [event["ts"] for event in traced[1] if "ts" in event]
    assert times == sorted(times)
    assert all(event["dur"] >= 0 for event in traced[1] if event["ph"] == "X")


def test_slices_of_a_thread_do_not_overlap(traced: tuple[Run, list[dict]]) -> None:
    free_from: dict[tuple[int, int], int] = {}
    for event in traced[1]:
        if event["ph"] == "X":
            thread = event["pid"], event["tid"]
            assert event["ts"] >= free_from.get(thread, 0)
            free_from[thread] = event["ts"] + event["dur"]


def test_every_request_begins_and_ends(traced: tuple[Run, list[dict]]) -> None:
    run, events = traced
    begins = [e for e in events if e["ph"] == "b" and e["name"].startswith("request ")]
    ends = [e for e in events if e["ph"] == "e" and e["name"].startswith("request ")]
    assert sorted(e["id"] for e in begins) == sorted(e["id"] for e in ends) == run.requests["request"].tolist()
    assert Counter(e["name"] for e in events if e["ph"] == "b")["prefill"] == len(run.requests)


def test_counters_return_to_zero_and_never_pass_the_clients(traced: tuple[Run, list[dict]]) -> None:
    counters = [event["args"] for event in traced[1] if event["ph"] == "C"]
    assert counters[-1] == {"waiting": 0, "active": 0}
    assert all(0 <= c["waiting"] + c["active"] <= 3 for c in counters)
    assert max(c["active"] for c in counters) == 3


def test_lanes_are_named_threads(traced: tuple[Run, list[dict]]) -> None:
    run, events = traced
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    lanes = {f"{lane} {worker}" for lane, worker in run.spans[["lane", "worker"]].itertuples(index=False)}
    assert set(names.values()) == lanes
    assert {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"} == set(names)
    assert REQUESTS_PROCESS not in {pid for pid, _ in names}
