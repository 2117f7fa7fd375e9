"""A table is checked in about the time that it takes to load."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from engines.errors import InputError
from engines.policy.architecture import PDV
from engines.record.run import Run
from engines.storage.tables import Column, Table

ROWS = 200_000


def test_a_large_record_is_read_in_a_moment(tmp_path: Path) -> None:
    """200,000 steps of 2,000 requests; a check row by row would take minutes."""
    big(tmp_path, 2_000, ROWS)
    started = time.process_time()
    run = Run.load(tmp_path)
    assert len(run.steps) == ROWS
    assert time.process_time() - started < 5


def big(folder: Path, requests: int, steps: int) -> None:
    """The record of a simulation that never was."""
    each = steps // requests
    ids, batches = np.arange(requests), np.arange(steps)
    nothing = np.zeros(requests, dtype=int)
    starts = batches * 1e-3
    Run(
        {"kind": "simulated", "architecture": PDV.to_dict(), "workload": {}},
        pd.DataFrame(
            {
                "request": ids, "arrival_s": ids * 0.0, "prefill_start_s": 0.0, "first_token_s": 0.0,
                "finish_s": ids + 1.0, "prompt_tokens": 10, "max_tokens": each, "output_tokens": each,
                "verifications": nothing, "drafted": nothing, "accepted": nothing, "rejected": nothing,
                "discarded": nothing, "status": "finished", "finish_reason": "length", "error": "",
            }
        ),
        pd.DataFrame(
            {
                "batch_id": batches, "request": batches % requests, "position": batches // requests, 
                "admission_s": 0.0,
                "queue_s": 0.0, "permit_s": 0.0, "draft_length": 4, "emitted": 1, "accepted": 0, "rejected": 4,
                "discarded": 0,
            }
        ),
        pd.DataFrame(
            {
                "batch_id": batches, "lane": "decode", "worker": 0, "device": 0, "stream": 0, "step": "verify",
                "segment": "verify", "batch_size": 1, "draft_length": 4, "tokens": 5, "context_tokens": 20.0,
                "hybrid": False, "back_to_back": False, "dispatched_s": starts, "start_s": starts,
                "end_s": starts + 1e-3, "completed_s": starts + 1e-3, "solo_s": 1e-3,
            }
        ),
        {int(i): np.ones(each, dtype=np.int8) for i in ids},
    ).save(folder)  # fmt: skip


@pytest.mark.parametrize(
    ("column", "values", "row"),
    [
        (Column("whole", least=0), [3, 2**63 - 1], None),
        (Column("whole", least=0), pd.Series([3, 2**63], dtype="uint64"), 1),
        (Column("whole", least=0), [3, -1], 1),
        (Column("number", least=0, most=10), [3.5, 10.5], 1),
        (Column("number"), [3.5, float("-inf")], 1),
        (Column("number"), [float("nan")], 0),
        (Column("number", empty=True), [float("nan"), 2.0], None),
        (Column("number", empty=True), [float("nan"), float("inf")], 1),
        (Column("number"), [3, 4], None),
        (Column("text"), ["", "[/x]"], None),
        (Column("text", among=("a",)), ["a", "b"], 1),
        (Column("flag"), [True, False], None),
    ],
)
def test_the_first_wrong_value_is_named(column: Column, values: object, row: int | None, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pd.DataFrame({"x": values}).to_parquet(path)
    table = Table("run", path, "write it again")
    if row is None:
        assert len(table.read({"x": column})) == len(pd.read_parquet(path))
    else:
        with pytest.raises(InputError, match=rf"table\.parquet row {row} column x = .*: needs .*; write it again"):
            table.read({"x": column})


def test_damaged_notes_of_pandas_do_not_matter(tmp_path: Path) -> None:
    """They lie in the file's schema, beside the columns; the columns are whole."""
    path = tmp_path / "table.parquet"
    table = pa.table({"count": [1, 2]}).replace_schema_metadata({"pandas": '{"columns": [\0'})
    parquet.write_table(table, path)
    read = Table("run", path, "record the run again").read({"count": Column("whole")})
    assert read["count"].tolist() == [1, 2]
