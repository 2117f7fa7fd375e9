"""Validate the record of a run when it is read: its settings, its tables, and the tables against one another.

engines.record.run describes their meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import AfterValidator, Field

from engines.errors import InputError
from engines.policy.architecture import Architecture, Segment, Step
from engines.policy.request import Status
from engines.storage.reading import read_toml
from engines.storage.tables import Column, Table, first, read_parquet
from engines.storage.validation import Count, NotNegative, Positive, Record, Text, Whole, checked
from engines.workload.lengths import MOST_TOKENS

AGAIN = "record the run again"
FINAL = (Status.FINISHED, Status.CANCELLED, Status.FAILED, Status.REJECTED)
MOST_S = 1e12  # of a time: the clock of a longer run would no longer advance

_COUNT = Column("whole", least=0)
_ANY = Column("whole")  # also of a rejected request, whose numbers may be the reason
_TIME = Column("number", least=0, most=MOST_S)
_TIME_IF_ANY = Column("number", least=0, most=MOST_S, empty=True)
_WAIT = Column("number", least=-1e-6, most=MOST_S)  # a difference of times: rounding can make 0 slightly negative
_NAME = Column("text")
REQUESTS = {
    "request": _COUNT, "arrival_s": _TIME, "prefill_start_s": _TIME_IF_ANY, "first_token_s": _TIME_IF_ANY,
    "finish_s": _TIME, "prompt_tokens": _ANY, "max_tokens": _ANY, "output_tokens": _COUNT, "verifications": _COUNT,
    "drafted": _COUNT, "accepted": _COUNT, "rejected": _COUNT, "discarded": _COUNT,
    "status": Column("text", among=FINAL), "finish_reason": _NAME, "error": _NAME,
}  # fmt: skip
STEPS = {
    "batch_id": _COUNT, "request": _COUNT, "position": _COUNT, "admission_s": _WAIT, "queue_s": _WAIT,
    "permit_s": _WAIT, "draft_length": _COUNT, "emitted": _COUNT, "accepted": _COUNT, "rejected": _COUNT,
    "discarded": _COUNT,
}  # fmt: skip
SPANS = {
    "batch_id": _COUNT, "lane": _NAME, "worker": _COUNT, "device": _COUNT, "stream": _COUNT,
    "step": Column("text", among=tuple(Step)), "segment": Column("text", among=tuple(Segment)),
    "batch_size": Column("whole", least=1), "draft_length": _COUNT, "tokens": _COUNT,
    "context_tokens": Column("number", least=0, most=MOST_S), "hybrid": Column("flag"),
    "back_to_back": Column("flag"), "dispatched_s": _TIME, "start_s": _TIME, "end_s": _TIME, "completed_s": _TIME,
    "solo_s": _TIME_IF_ANY,
}  # fmt: skip
BEFORE_3 = {"batch_id": "work"}  # former names of columns, before schema 3


def _architecture(values: dict[str, Any]) -> dict[str, Any]:
    Architecture.from_dict(values)
    return values


class WorkloadSettings(Record):
    """The `workload` table of run.toml: how the workload was made, as far as known."""

    kind: Text | None = None
    count: Whole | None = None
    concurrency: Count | None = None
    rate: Positive | None = None
    process: Text | None = None
    cv: NotNegative | None = None
    mean_think_s: NotNegative | None = None
    temperature: NotNegative | None = None
    seed: Whole | None = None
    ignore_eos: bool | None = None


class RunSettings(Record):
    """The contents of run.toml, without the schema version."""

    kind: Literal["live", "simulated"]
    architecture: Annotated[dict[str, Any], AfterValidator(_architecture)]
    workload: WorkloadSettings
    name: Text | None = None
    device: Text | None = None
    pair: Text | None = None
    dtype: Text | None = None
    date: Text | None = None
    max_context: Count | None = None
    prefill_tokens: Count | None = None
    seed: Whole | None = None
    jitter: bool | None = None
    replays: Text | None = None
    replicas: Count | None = None
    router: Text | None = None
    fingerprint: Text | None = None
    versions: Annotated[dict[str, str], Field(default_factory=dict)]


def read_settings(path: Path, newest: int) -> tuple[int, dict[str, Any]]:
    """Read run.toml. Returns the schema version and the other settings as plain values.

    Raises InputError if a setting is not valid or the schema version is above `newest`.
    """
    info = read_toml("run", path, AGAIN)
    found = info.pop("schema_version", None)
    if type(found) is not int or not 1 <= found <= newest:
        raise InputError(f"run {path} schema_version", found, f"this version reads 1 to {newest}; {AGAIN}")
    checked(RunSettings, info, f"run {path}", AGAIN)
    return found, info


def read_tables(folder: Path, version: int) -> dict[str, pd.DataFrame]:
    """Read the requests, steps and spans of a record with this schema version. Columns get their current names.

    Raises InputError if a table is not valid or does not match the others.
    """
    files = {name: Table("run", folder / f"{name}.parquet", AGAIN) for name in ("requests", "steps", "spans")}
    old = BEFORE_3 if version < 3 else {}
    spans = {name: kind for name, kind in SPANS.items() if version > 1 or name != "back_to_back"}
    kinds: dict[str, Mapping[str, Column]] = {"requests": REQUESTS, "steps": STEPS, "spans": spans}
    tables = {}
    for name, file in files.items():
        stored = {old.get(column, column): kind for column, kind in kinds[name].items()}
        tables[name] = file.read(stored).set_axis(list(kinds[name]), axis=1)
    _check_requests(files["requests"], tables["requests"])
    _check_spans(files["spans"], tables["spans"])
    _check_steps(files["steps"], **tables)
    if version == 1:
        tables["spans"] = _with_back_to_back(tables["spans"])[list(SPANS)]
    return tables


def _with_back_to_back(spans: pd.DataFrame) -> pd.DataFrame:
    """Add the back_to_back column, which records of version 1 lack.

    A batch was back-to-back if it was dispatched at exactly the time at which its worker's last one was completed.
    """
    batches = spans.drop_duplicates("batch_id").sort_values("dispatched_s", kind="stable")
    before_s = batches.groupby(["lane", "worker"])["completed_s"].shift()
    known = pd.Series((batches["dispatched_s"] == before_s).to_numpy(), index=batches["batch_id"])
    return spans.assign(back_to_back=spans["batch_id"].map(known).astype(bool))


def _check_requests(file: Table, requests: pd.DataFrame) -> None:
    file.refuse(requests, "request", first(requests["request"].duplicated()), "is a duplicate")
    finished = (requests["status"] == Status.FINISHED).to_numpy()
    for column in ("prefill_start_s", "first_token_s"):
        file.refuse(requests, column, first(finished & requests[column].isna()), "a finished request needs one")
    before = requests["arrival_s"]
    for column in ("prefill_start_s", "first_token_s", "finish_s"):
        moment = requests[column]
        file.refuse(requests, column, first(moment < before), "is before an earlier event of the request")
        before = moment.fillna(before)
    taken = (requests["status"] != Status.REJECTED).to_numpy()
    for column, least in (("prompt_tokens", 0), ("max_tokens", 1)):
        wrong = first(taken & ~requests[column].between(least, MOST_TOKENS))
        file.refuse(requests, column, wrong, f"needs {least} to {MOST_TOKENS} tokens")
    file.refuse(requests, "output_tokens", first(finished & (requests["output_tokens"] < 1)), "is less than 1")
    too_many = taken & (requests["output_tokens"] > requests["max_tokens"])
    file.refuse(requests, "output_tokens", first(too_many), "is more than max_tokens")


def _check_spans(file: Table, spans: pd.DataFrame) -> None:
    file.refuse(spans, "end_s", first(spans["end_s"] < spans["start_s"]), "is before start_s")
    file.refuse(spans, "completed_s", first(spans["completed_s"] < spans["dispatched_s"]), "is before dispatched_s")


def _check_steps(file: Table, requests: pd.DataFrame, steps: pd.DataFrame, spans: pd.DataFrame) -> None:
    unknown = ~steps["request"].isin(requests["request"])
    file.refuse(steps, "request", first(unknown), "requests.parquet has no such request")
    finished = requests.loc[requests["status"] == Status.FINISHED, "request"]
    # A failed batch may have no spans, and its requests did not finish.
    needed = (steps["emitted"] > 0) | steps["request"].isin(finished)
    file.refuse(
        steps,
        "batch_id",
        first(needed & ~steps["batch_id"].isin(spans["batch_id"])),
        "spans.parquet has no such batch",
    )


def read_tapes(
    field: str, path: Path, remedy: str, longest: Mapping[int, int] | None = None
) -> dict[int, np.ndarray]:
    """Read acceptance tapes: request id -> int8 array of -1, 0 and 1.

    longest: the most entries that each request's tape may have, if known. Raises InputError.
    """
    table = read_parquet(field, path, ("request", "bits"), remedy)
    file = Table(field, path, remedy)
    if not table.num_rows:
        return {}
    ids, bits = (table[column].combine_chunks() for column in ("request", "bits"))
    if not _COUNT.fits(ids.type) or ids.null_count or not _is_list_of_whole(bits.type) or bits.null_count:
        raise InputError(field, str(path), f"every row needs a whole number and a list of -1, 0 and 1; {remedy}")
    requests, lengths = ids.to_numpy(zero_copy_only=False), bits.value_lengths().to_numpy(zero_copy_only=False)
    flat = bits.flatten()
    rows = np.repeat(np.arange(len(requests)), lengths)
    known = flat.fill_null(0).to_numpy(zero_copy_only=False)
    wrong = first(flat.is_null().to_numpy(zero_copy_only=False) | (known < -1) | (known > 1))
    if wrong is not None:
        raise file.error("bits", int(rows[wrong]), flat[wrong].as_py(), "a tape holds -1, 0 and 1")
    doubled = first(pd.Series(requests).duplicated())
    if doubled is not None:
        raise file.error("request", doubled, int(requests[doubled]), "is a duplicate")
    tapes = np.split(known.astype(np.int8), np.cumsum(lengths)[:-1])
    found = dict(zip(requests.tolist(), tapes, strict=True))
    for row, (request, tape) in enumerate(found.items()):
        if longest is not None and len(tape) > longest.get(request, 0):
            reason = f"the request has {longest.get(request, 0)} output tokens, but its tape has {len(tape)} entries"
            raise file.error("request", row, request, reason)
    return found


def _is_list_of_whole(kind: pa.DataType) -> bool:
    types = pa.types
    return (types.is_list(kind) or types.is_large_list(kind)) and types.is_integer(kind.value_type)
