"""The record of a run survives its folder, and a damaged folder is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest

from engines.errors import InputError
from engines.policy.architecture import BASELINE, PD, PDV, Segment, Step
from engines.policy.batch import Batch, Wait
from engines.policy.request import Request, Settlement
from engines.policy.request_state import RequestState
from engines.policy.scheduler import Scheduler
from engines.policy.segment_shape import SegmentShape
from engines.record.metrics import decompose, summary
from engines.record.run import RUN_FILES, Recorder, Run, SegmentTime
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
    loaded = Run.load(str(folder))  # a path as text will do, as for profiles
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
    shapes = (SegmentShape.draft(2, 4, (15 + 38) / 2), SegmentShape.verify(2, 4, (15 + 38) / 2))
    batch = Batch(7, decode, 0, Step.DRAFT_VERIFY, states, 1.0, False, False, [2, 4], waits, settlements, shapes)
    recorder.completed(batch, [SegmentTime(Segment.DRAFT, 1.1, 1.4, 0.3), SegmentTime(Segment.VERIFY, 1.4, 1.9)], 2.0)
    record = recorder.run({})
    spans = record.spans.set_index("segment")
    given = ["batch_id", "lane", "batch_size", "draft_length", "tokens", "context_tokens"]
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
    info = {"kind": "simulated", "architecture": PDV.to_dict(), "workload": {}}
    loaded = Run.load(recorder.run(info).save(tmp_path))
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
    with pytest.raises(InputError, match=f"{key} = None: it is missing; record the run again"):
        Run.load(run.save(folder))


def test_another_schema_version_is_refused(folder: Path) -> None:
    path = folder / "run.toml"
    path.write_text(path.read_text().replace("schema_version = 3", "schema_version = 7"))
    with pytest.raises(InputError, match=r"run.toml schema_version = 7: this version reads 1 to 3"):
        Run.load(folder)


@pytest.mark.parametrize(
    ("text", "other", "says"),
    [
        ('kind = "simulated"', 'kind = "guessed"', "kind = 'guessed'"),
        ('kind = "simulated"', "kind = 3", "kind = 3"),
        ("[workload]", '[workload]\nconcurrency = "3"', "workload.concurrency = '3'"),
        ("[workload]", "[workload]\nconcurrency = true", "workload.concurrency = True"),
        ("[workload]", "[workload]\nconcurrency = {a = 1}", "workload.concurrency = {'a': 1}"),
        ("[workload]", "[workload]\nrate = inf", "workload.rate = inf"),
        ("[workload]", "[workload]\nseed = -1", "workload.seed = -1"),
        ("[workload]", "[workload]\ntemperature = nan", "workload.temperature = nan"),
        ("[workload]", "[other]", "workload = None: it is missing"),
        ("slots = 64", "slots = []", "architecture.slots = []"),
        ("slots = 64", "slots = 64.0", "architecture.slots = 64.0"),
        ("draft = 6", 'draft = "6"', "architecture.lanes.draft.steps.draft = '6'"),
        ("schema_version = 3", 'schema_version = 3\nmax_context = "2048"', "max_context = '2048'"),
        ("schema_version = 3", "schema_version = 3\nversions = 3", "versions = 3"),
        ("schema_version = 3", "schema_version = 3\ndevice = 2026-01-02", "device = datetime.date(2026, 1, 2)"),
        ("schema_version = 3", "schema_version = true", "schema_version = True"),
    ],
)
def test_a_setting_of_another_kind_is_named(folder: Path, text: str, other: str, says: str) -> None:
    path = folder / "run.toml"
    path.write_text(path.read_text().replace(text, other))
    with pytest.raises(InputError) as caught:
        Run.load(folder)
    assert str(caught.value).startswith(f"run {path} ")
    assert says in str(caught.value)
    assert str(caught.value).endswith("; record the run again")


def _with(table: pd.DataFrame, column: str, row: int, value: object) -> pd.DataFrame:
    cells = table[column].tolist()
    cells[row] = value
    whole = value is None and isinstance(cells[0], int)
    return table.assign(**{column: pd.array(cells, dtype="Int64") if whole else cells})


@pytest.mark.parametrize(
    ("name", "column", "value", "says"),
    [
        ("requests", "arrival_s", float("inf"), "= inf: needs a number"),
        ("requests", "arrival_s", -1.0, "= -1.0: needs a number"),
        ("requests", "arrival_s", 1e300, "= 1e+300: needs a number"),
        ("requests", "arrival_s", None, "= None: needs a number"),
        ("requests", "finish_s", 0.1, "= 0.1: is before"),
        ("requests", "first_token_s", None, "= nan: a finished request needs one"),
        ("requests", "request", 0, "= 0: is a duplicate"),
        ("requests", "status", "fine", "= 'fine': needs one of"),
        ("requests", "status", "running", "= 'running': needs one of"),
        ("requests", "output_tokens", 300, "= 300: is more than max_tokens"),
        ("requests", "prompt_tokens", -5, "= -5: needs 0 to 10000000 tokens"),
        ("requests", "max_tokens", 2**40, "= 1099511627776: needs 1 to 10000000 tokens"),
        ("steps", "request", 77, "= 77: requests.parquet has no such request"),
        ("steps", "batch_id", 777, "= 777: spans.parquet has no such batch"),
        ("steps", "queue_s", -1.0, "= -1.0: needs a number"),
        ("spans", "segment", "decode", "= 'decode': needs one of"),
        ("spans", "step", "[/x]", "= '[/x]': needs one of"),
        ("spans", "end_s", 0.0, "= 0.0: is before start_s"),
        ("spans", "start_s", float("inf"), "= inf: needs a number"),
        ("spans", "batch_size", 0, "= 0: needs a whole number"),
        ("spans", "worker", None, "= None: needs a whole number"),
    ],
)
def test_a_cell_that_cannot_be_is_named(
    run: Run, folder: Path, name: str, column: str, value: object, says: str
) -> None:
    path = folder / f"{name}.parquet"
    _with(getattr(run, name), column, 2, value).to_parquet(path)
    with pytest.raises(InputError) as caught:
        Run.load(folder)
    assert str(caught.value).startswith(f"run {path} row ")
    assert f" column {column} {says}" in str(caught.value)
    assert str(caught.value).endswith("; record the run again")


@pytest.mark.parametrize(
    ("name", "column"),
    [("requests", "prompt_tokens"), ("steps", "batch_id"), ("spans", "start_s"), ("spans", "hybrid")],
)
def test_a_column_of_another_type_is_named(run: Run, folder: Path, name: str, column: str) -> None:
    table = getattr(run, name)
    for other in (table[column].astype(str), [[1]] * len(table), table[column].astype(float) + 0.5):
        if column == "start_s" and not isinstance(other, list) and other.dtype.kind == "f":
            continue
        table.assign(**{column: other}).to_parquet(folder / f"{name}.parquet")
        with pytest.raises(InputError, match=rf"{name}\.parquet row 0 column {column} = "):
            Run.load(folder)


@pytest.mark.parametrize(
    ("bits", "says"),
    [
        ([-1, 300], "row 0 column bits = 300: a tape holds -1, 0 and 1"),
        ([-1, None], "row 0 column bits = None: a tape holds -1, 0 and 1"),
        ([-1, 1, 1, 1, 1, 1, 1], "row 0 column request = 0: the request has 6 output tokens, but its tape has 7"),
        (None, "every row needs a whole number and a list of -1, 0 and 1"),
        (["a"], "needs a whole number and a list"),
        ([0.5], "needs a whole number and a list"),
        ([[1]], "needs a whole number and a list"),
        (3, "needs a whole number and a list"),
    ],
)
def test_a_tape_that_is_none_is_refused(folder: Path, bits: object, says: str) -> None:
    pd.DataFrame({"request": [0], "bits": [bits]}).to_parquet(folder / "tapes.parquet")
    with pytest.raises(InputError) as caught:
        Run.load(folder)
    assert says in str(caught.value)
    assert "tapes.parquet" in str(caught.value)


def test_two_tapes_of_one_request_are_refused(folder: Path) -> None:
    pd.DataFrame({"request": [0, 0], "bits": [[-1], [-1]]}).to_parquet(folder / "tapes.parquet")
    with pytest.raises(InputError, match="row 1 column request = 0: is a duplicate"):
        Run.load(folder)


def test_a_column_that_is_there_twice_is_refused(folder: Path) -> None:
    table = parquet.read_table(folder / "steps.parquet")
    parquet.write_table(table.append_column("batch_id", table["batch_id"]), folder / "steps.parquet")
    with pytest.raises(InputError, match="column batch_id is a duplicate"):
        Run.load(folder)


def test_a_table_that_is_a_folder_of_tables_is_refused(folder: Path) -> None:
    steps = folder / "steps.parquet"
    (folder / "parts").mkdir()
    steps.rename(folder / "parts" / "a.parquet")
    (folder / "parts").rename(steps)
    with pytest.raises(InputError, match="it is a folder"):
        Run.load(folder)


def test_tables_of_two_records_are_no_record(run: Run, folder: Path, tmp_path: Path) -> None:
    run.steps["queue_s"] += 0.001  # sound by itself, and beside the other tables
    other = run.save(tmp_path / "other")
    (folder / "steps.parquet").write_bytes((other / "steps.parquet").read_bytes())
    with pytest.raises(InputError, match=r"the tables do not belong to this run\.toml"):
        Run.load(folder)


def test_a_record_from_before_the_digest_is_loaded(run: Run, folder: Path) -> None:
    path = folder / "run.toml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("tables_sha256")))
    assert len(path.read_text().splitlines()) == len(lines) - 1
    assert Run.load(folder).info == run.info


def test_a_save_that_was_killed_between_two_tables_is_completed_by_the_next_load(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.info["name"] = "second"
    original, moved = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(target)
        original(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run.save(folder)
    assert Run.load(folder).name == "second"
    assert sorted(path.name for path in folder.iterdir()) == sorted(RUN_FILES)


def test_a_record_of_version_1_tells_by_its_times_who_came_straight_from_other_work(run: Run, folder: Path) -> None:
    assert 3 < run.spans["back_to_back"].sum() < len(run.spans) - 3
    path = folder / "run.toml"
    lines = path.read_text().replace("schema_version = 3", "schema_version = 1").splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("tables_sha256")) + "\n")
    old = {"batch_id": "work"}
    run.steps.rename(columns=old).to_parquet(folder / "steps.parquet", index=False)
    run.spans.drop(columns="back_to_back").rename(columns=old).to_parquet(folder / "spans.parquet", index=False)
    pd.testing.assert_frame_equal(Run.load(folder).spans, run.spans)
