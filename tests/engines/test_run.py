"""The record of a run survives its folder, and a damaged folder is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engines.architecture import BASELINE, PDV
from engines.errors import InputError
from engines.metrics import decompose, summary
from engines.request import Request
from engines.run import Recorder, Run
from engines.scheduler import Scheduler
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
    path.write_text(path.read_text().replace("schema_version = 1", "schema_version = 7"))
    with pytest.raises(InputError, match=r"run.toml schema_version = 7: this version reads 1"):
        Run.load(folder)
