"""A simulated run: deterministic, complete, with times that the costs and the host explain."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrate.contention import NoContention
from calibrate.host_times import host_batches
from engines.errors import InputError
from engines.policy.architecture import ARCHITECTURES, BASELINE, PD, PDV, Architecture, Segment, Step
from engines.policy.request import Request
from engines.policy.request_state import RequestState
from engines.policy.segment_shape import SegmentShape
from engines.record.metrics import PARTS, decompose, summary
from engines.workload.workload import FixedLength, Workload, make_workload
from sim.cost_protocols import SegmentCost
from sim.costs import CostModel
from sim.population import Population
from tests.calibrate.profiles import INFO, host_laws, made_up
from tests.sim.runs import CLOSED, COSTS, OPEN, QUIET, SURE, run, thinking


@pytest.mark.parametrize("workload", [CLOSED, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
class TestEveryArchitecture:
    def test_same_seed_same_bytes(self, architecture: Architecture, workload: Workload, tmp_path: Path) -> None:
        for name in ("first", "second"):
            run(architecture, workload, CostModel(made_up())).save(tmp_path / name)
        run(architecture, workload, seed=1).save(tmp_path / "other")
        for path in (tmp_path / "first").iterdir():
            assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name
        spans = [(tmp_path / name / "spans.parquet").read_bytes() for name in ("first", "other")]
        assert spans[0] != spans[1]

    def test_every_request_gets_its_tokens(self, architecture: Architecture, workload: Workload) -> None:
        requests = run(architecture, workload).requests
        assert requests["output_tokens"].tolist() == [request.max_tokens for request in workload.requests]
        assert (requests["status"] == "finished").all()
        assert (requests["finish_reason"] == "length").all()
        assert (requests["drafted"] == requests[["accepted", "rejected", "discarded"]].sum(axis=1)).all()

    def test_latency_decomposes_exactly(self, architecture: Architecture, workload: Workload) -> None:
        parts = decompose(run(architecture, workload))
        assert len(parts) == len(workload.requests)
        np.testing.assert_allclose(parts[PARTS].sum(axis=1), parts["latency_s"], atol=1e-9)

    def test_a_stream_does_one_thing_at_a_time(self, architecture: Architecture, workload: Workload) -> None:
        spans = run(architecture, workload).spans.sort_values(["stream", "start_s", "end_s"])
        for _, stream in spans.groupby(["device", "stream"]):
            assert (stream["start_s"].to_numpy()[1:] >= stream["end_s"].to_numpy()[:-1]).all()
            batches = stream["batch_id"].to_numpy()
            assert (batches[1:] != batches[:-1]).sum() + 1 == len(set(batches))  # a work's segments are back to back

    def test_alone_takes_its_solo_time(self, architecture: Architecture, workload: Workload) -> None:
        spans = run(architecture, workload, QUIET).spans
        np.testing.assert_allclose(spans["end_s"] - spans["start_s"], spans["solo_s"], atol=1e-9)
        slowed = run(architecture, workload).spans
        longest = ((slowed["end_s"] - slowed["start_s"]) / slowed["solo_s"]).max()
        assert (longest > 1.05) == (architecture is not BASELINE)


@pytest.mark.parametrize("seed", [-1, 0.5, 2**63])
def test_a_seed_is_a_whole_number_of_64_bits(seed: Any) -> None:
    with pytest.raises(InputError, match="seed"):
        run(PD, seed=seed)


@pytest.mark.parametrize("workload", [OPEN, CLOSED, thinking(0.01)], ids=["open", "closed", "thinking"])
def test_a_full_queue_rejects_and_the_rest_finish(workload: Workload) -> None:
    crowd = replace(workload, requests=tuple(replace(r, arrival_s=0.0) for r in workload.requests))
    done = run(PD.replace(queue_limit=2), crowd).requests
    assert len(done) == len(workload.requests)
    assert set(done["status"]) == {"finished", "rejected"}
    refused = done[done["status"] == "rejected"]
    assert (refused["arrival_s"] == refused["finish_s"]).all()  # and neither is missing


def test_closed_loop_keeps_its_concurrency() -> None:
    done = run(PD).requests
    arrivals, ends = sorted(done["arrival_s"]), sorted(done["finish_s"])
    assert arrivals[:5] == [0.0] * 5
    assert arrivals[5:] == ends[: len(arrivals) - 5]


def test_lanes_on_two_devices_do_not_slow_each_other() -> None:
    lanes = tuple(replace(lane, device=device) for device, lane in enumerate(PD.lanes))
    spans = run(PD.replace(lanes=lanes)).spans
    np.testing.assert_allclose(spans["end_s"] - spans["start_s"], spans["solo_s"], atol=1e-9)


def test_host_time_is_around_the_device() -> None:
    spans = run(PD, jitter=False).spans
    columns = {"lane": "first", "back_to_back": "first", "dispatched_s": "min", "start_s": "min"}
    columns |= {"end_s": "max", "completed_s": "max"}
    batches = spans.groupby("batch_id").agg(columns).sort_values("dispatched_s")
    straight = batches["back_to_back"]
    assert 20 < straight.sum() < len(batches) - 20
    assert (straight == (batches["dispatched_s"] == batches.groupby("lane")["completed_s"].shift())).all()
    before_s = np.where(straight, 0.03e-3, 0.08e-3)
    np.testing.assert_allclose(batches["start_s"] - batches["dispatched_s"], before_s, atol=1e-9)
    np.testing.assert_allclose(batches["completed_s"] - batches["end_s"], 0.02e-3, atol=1e-9)


def test_host_time_grows_with_the_batch_and_with_what_the_host_does_beside() -> None:
    """The simulation asks for just what calibration reads from a record (calibrate.host_times)."""
    laws = host_laws(before=0.1, per_request=0.01, wake_up=0.2, beside=0.3, after=0.05)
    workload = make_workload(40, FixedLength(20), FixedLength(30), concurrency=8)
    found = host_batches(run(PDV, workload, CostModel(made_up(host_times=laws), extrapolate=True), jitter=False))
    assert {0, 1} <= set(found["beside"])
    wanted = 0.1 + 0.01 * found["batch_size"] + 0.2 * ~found["back_to_back"] + 0.3 * found["beside"]
    same = np.isclose(found["before_ms"], wanted)
    assert same.mean() > 0.95  # the rest were dispatched at the very moment at which another left the host


def test_a_batch_takes_what_its_captured_size_takes() -> None:
    profile = made_up(info={**INFO, "batch_buckets": [1, 4, 16], "token_buckets": [16, 128]})
    architecture = PD.with_batch_limits({Step.DRAFT_VERIFY: 16}).replace(slots=16)
    workload = make_workload(6, FixedLength(20), FixedLength(30), concurrency=6)
    costs = CostModel(profile, contention=NoContention())
    spans = run(architecture, workload, costs, jitter=False, prefill_tokens=200).spans
    for row in spans.itertuples():
        k, context = int(row.draft_length), row.context_tokens
        if not k:
            padded = SegmentShape.prefill(Segment(row.segment), 1, 128)
        else:
            size = next(size for size in (1, 4, 16) if size >= row.batch_size)
            mean = context * row.batch_size / size
            padded = (SegmentShape.draft if row.segment == "draft" else SegmentShape.verify)(size, k, mean)
        assert row.solo_s == pytest.approx(costs.cost(padded).duration_s)
    assert set(spans.loc[spans["draft_length"] > 0, "batch_size"]) >= {1, 3, 6}


def test_work_beyond_the_profile_is_refused_with_a_remedy() -> None:
    with pytest.raises(InputError, match="measured draft at batch_size 1 to 16"):
        run(
            PD.with_batch_limits({Step.DRAFT_VERIFY: 32}),
            make_workload(40, FixedLength(20), FixedLength(30), concurrency=40),
        )


class Listening:
    """Costs that note what they are asked for: every segment takes 1 ms, and a batch 1 ms (2 ms, where its worker had
    to be woken) outside the device."""

    captured = None

    def __init__(self) -> None:
        self.contention = NoContention()
        self.asked: list[SegmentShape] = []

    def cost(self, shape: SegmentShape, quantile: float | None) -> SegmentCost:
        self.asked.append(shape)
        return SegmentCost(1e-3, 1e-3)

    def host_s(self, step: Step, batch_size: int, back_to_back: bool, beside: int) -> tuple[float, float]:
        return (0.5e-3, 0.5e-3) if back_to_back else (1e-3, 1e-3)

    def describe(self) -> dict[str, object]:
        return {}


def test_a_step_costs_what_its_context_has_grown_to() -> None:
    """One request of 100 prompt tokens whose drafts are all right: 1 token of output, then 6, then 11."""
    costs = Listening()
    done = run(PD, Workload((Request(0, 100, 12, 0.0),)), costs, acceptance=SURE)
    assert costs.asked == [
        ("prefill_draft", 1, 0, 100, 100.0),
        ("prefill_target", 1, 0, 100, 100.0),
        *((s, 1, 4, n, 101.0) for s, n in (("draft", 4), ("verify", 5))),
        *((s, 1, 4, n, 106.0) for s, n in (("draft", 4), ("verify", 5))),
        *((s, 1, 4, n, 111.0) for s, n in (("draft", 4), ("verify", 5))),
    ]
    assert done.spans["dispatched_s"].tolist() == pytest.approx([0.0] * 2 + [0.004] * 2 + [0.008] * 2 + [0.011] * 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_span_took_what_the_record_says_of_it_costs(architecture: Architecture) -> None:
    """The costs are asked for the same batch, draft length, tokens and context that the record is given."""
    packed = architecture.with_batch_limits({Step.PREFILL: 3}) if architecture is not BASELINE else architecture
    costs = Listening()
    spans = run(packed, CLOSED, costs).spans
    assert sorted(costs.asked) == sorted(spans[list(SegmentShape._fields)].itertuples(index=False, name=None))


def test_progress_tells_every_end() -> None:
    told: list[tuple[int, int]] = []
    run(PD, progress=lambda done, total: told.append((done, total)))
    assert told == [(n, 60) for n in range(1, 61)]


def test_littles_law_notices_a_lost_moment() -> None:
    population = Population()
    state = RequestState(
        Request(0, 1, 1), 1, arrival_s=0.0, ready_s=0.0, ready_order=0, ready_missing_s=(0.0, 0.0), finish_s=2.0
    )
    population.enter(0.0)
    population.leave(2.1, state)
    with pytest.raises(AssertionError, match="Little"):
        population.check_littles_law()


def test_the_record_says_how_it_was_made() -> None:
    info = run(PD, seed=3, max_context=512, info={"name": "mine"}).info
    assert (info["kind"], info["seed"], info["max_context"], info["name"]) == ("simulated", 3, 512, "mine")
    assert info["acceptance"] == {"source": "independent", "alpha": 0.7}
    assert info["workload"] == {**CLOSED.info, "concurrency": 5}
    assert (info["costs"], info["jitter"], run(PD, jitter=False).info["jitter"]) == (COSTS.describe(), True, False)
    assert info["versions"] == {name: version(name) for name in ("numpy", "simpy")}
    assert not {"max_context", "name"} & set(run(PD, OPEN).info)
    assert Architecture.from_dict(info["architecture"]) == PD
    assert summary(run(PD))["acceptance_length"] > 1
