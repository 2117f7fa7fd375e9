"""The record of a run survives its folder, and a damaged folder is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engines.architecture import BASELINE, PD, PDV, Segment, Step
from engines.errors import InputError
from engines.metrics import decompose, summary
from engines.request import Request, RequestState, Settlement
from engines.run import Recorder, Run, SegmentTime
from engines.scheduler import Scheduler
from engines.work import Wait, Work
from tests.driver import drive


@pytest.fixture
def run() -> Run:
    record = drive(Scheduler(PDV), [Request(i, 10, 6, 0.3 * i) for i in range(5)], cancel=[(4.0, 3)])
    record.tapes = {0: np.array([-1, 1, 0, 1, 1, 0], dtype=np.int8), 2: np.array([-1], dtype=np.int8)}
    return record


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    return run.save(tmp_path / "a" / "run")


def test_a_record_survives_its_folder(run: Run, folder: Path) -> None:
    loaded = Run.load(folder)
    assert loaded.info == run.info
    for name in ("requests", "steps", "spans"):
        pd.testing.assert_frame_equal(getattr(loaded, name), getattr(run, name))
    assert list(loaded.tapes) == [0, 2]
    for request, tape in run.tapes.items():
        np.testing.assert_array_equal(loaded.tapes[request], tape)
        assert loaded.tapes[request].dtype == np.int8


def test_a_work_is_recorded_with_what_each_segment_was_given() -> None:
    """Two requests of 10 and 30 prompt tokens with 5 and 8 output tokens draft 2 and 4 tokens in one step: padded to
    4, that is 8 through the draft model and 10 through the target, after contexts of 15 and 38."""
    states = [
        RequestState(Request(i, prompt, 50), 50, 0.0, 0.0, i, (0.0, 0.0), emitted=emitted)
        for i, prompt, emitted in ((0, 10, 8), (1, 30, 8))
    ]
    recorder = Recorder()
    settlements: list[Settlement | None] = [Settlement(3, 2, 0, 0), None]  # the second one failed
    waits = [Wait(0.1, 0.2, 0.3), Wait(0.0, 0.5, 0.0)]
    decode = next(lane for lane in PD.lanes if lane.name == "decode")
    work = Work(7, decode, 0, Step.DRAFT_VERIFY, states, 1.0, False, [2, 4], waits, settlements)
    recorder.worked(work, [SegmentTime(Segment.DRAFT, 1.1, 1.4, 0.3), SegmentTime(Segment.VERIFY, 1.4, 1.9)], 2.0)
    record = recorder.run({})
    spans = record.spans.set_index("segment")
    given = ["work", "lane", "batch_size", "draft_length", "tokens", "context_tokens"]
    assert spans.loc["draft", given].tolist() == [7, "decode", 2, 4, 8, (15 + 38) / 2]
    assert spans.loc["verify", given].tolist() == [7, "decode", 2, 4, 10, (15 + 38) / 2]
    times = ["dispatched_s", "start_s", "end_s", "completed_s", "solo_s"]
    assert spans.loc["draft", times].tolist() == [1.0, 1.1, 1.4, 2.0, 0.3]
    assert np.isnan(spans.loc["verify", "solo_s"])
    assert record.steps.to_numpy().tolist() == [
        [7, 0, 5, 0.1, 0.2, 0.3, 2, 3, 2, 0, 0],
        [7, 1, 8, 0.0, 0.5, 0.0, 4, 0, 0, 0, 0],
    ]


def test_a_prefill_is_recorded_with_its_prompts() -> None:
    record = drive(Scheduler(PD.with_batch_limits({Step.PREFILL: 3})), [Request(i, 10 + i, 1, 0.0) for i in range(3)])
    assert record.spans["batch_size"].tolist() == [1, 1, 2, 2]
    assert record.spans["tokens"].tolist() == [10, 10, 23, 23]
    assert record.spans["context_tokens"].tolist() == [10.0, 10.0, 11.5, 11.5]


def test_a_record_keeps_the_tapes_in_order_of_request() -> None:
    tapes = {5: np.array([-1, 1], dtype=np.int8), 2: np.array([-1], dtype=np.int8)}
    assert list(Recorder().run({}, tapes).tapes) == [2, 5]


def test_a_record_that_never_ran_a_step_survives_its_folder(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.rejected(Request(0, 10, 6), 0.0, RuntimeError("full"))
    loaded = Run.load(recorder.run({"kind": "driven", "architecture": {}, "workload": {}}).save(tmp_path))
    assert loaded.requests["error"].tolist() == ["full"]
    assert loaded.spans.empty
    assert decompose(loaded).empty
    assert np.isnan(summary(loaded)["throughput_tokens_per_s"])


def test_a_refused_request_is_recorded() -> None:
    record = drive(Scheduler(BASELINE.replace(slots=1, queue_limit=1)), [Request(i, 10, 6, 0.0) for i in range(3)])
    (refused,) = record.requests[record.requests["status"] == "rejected"].to_dict("records")
    assert refused["request"] == 2
    counts = ["output_tokens", "verifications", "drafted", "accepted", "rejected", "discarded"]
    assert [refused[name] for name in counts] == [0] * 6
    assert (refused["finish_reason"], refused["prompt_tokens"], refused["max_tokens"]) == ("rejected", 10, 6)
    assert refused["arrival_s"] == refused["finish_s"] == 0.0
    assert "queue_limit" in refused["error"]
    assert np.isnan(refused["first_token_s"])


def test_saving_again_replaces_the_record(run: Run, folder: Path) -> None:
    run.info["name"] = "second"
    assert Run.load(run.save(folder)).name == "second"


def test_what_cannot_be_loaded_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run\.toml there"):
        Run.load(tmp_path / "nowhere")
    spans = (folder / "spans.parquet").read_bytes()
    (folder / "spans.parquet").write_bytes(spans[: len(spans) // 2])
    with pytest.raises(InputError, match=r"spans\.parquet.*missing or damaged"):
        Run.load(folder)
    (folder / "spans.parquet").unlink()
    with pytest.raises(InputError, match=r"spans\.parquet.*missing or damaged"):
        Run.load(folder)


def test_a_missing_column_is_named(run: Run, folder: Path) -> None:
    run.steps.drop(columns="permit_s").to_parquet(folder / "steps.parquet")
    with pytest.raises(InputError, match="column permit_s is missing"):
        Run.load(folder)


@pytest.mark.parametrize("content", [b"schema_version = ", b"\xff\xfe\x00"])
def test_a_damaged_description_is_named(folder: Path, content: bytes) -> None:
    (folder / "run.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"run\.toml.*not valid TOML"):
        Run.load(folder)


@pytest.mark.parametrize("key", ["kind", "architecture", "workload"])
def test_a_missing_setting_is_named(run: Run, folder: Path, key: str) -> None:
    del run.info[key]
    with pytest.raises(InputError, match=f"run {key} = None: .*record the run again"):
        Run.load(run.save(folder))


def test_another_schema_version_is_refused(folder: Path) -> None:
    path = folder / "run.toml"
    path.write_text(path.read_text().replace("schema_version = 1", "schema_version = 7"))
    with pytest.raises(InputError, match="run schema_version = 7: this version reads 1"):
        Run.load(folder)
