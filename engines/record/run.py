"""The record of a live or simulated run.

It is a folder with `run.toml` (what ran, where, and with which resolved settings) and four tables: `requests` (one
row per request), `steps` (one row per request and batch), `spans` (one row per batch and segment) and `tapes` (the
acceptance tape of each request). Times are seconds after the start of the run. Live and simulated runs have the same
columns.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tomli_w

from engines.errors import MOST_WHOLE, InputError
from engines.policy.architecture import Segment
from engines.policy.batch import Batch
from engines.policy.request import Request, Status
from engines.policy.request_state import RequestState
from engines.record.rows import SpanRows, StepRows
from engines.record.schema import AGAIN, REQUESTS, SPANS, STEPS, read_settings, read_tables, read_tapes
from engines.storage.files import finish, replace_files

SCHEMA_VERSION = 3
TABLES = ("requests", "steps", "spans", "tapes")
RUN_FILES = ("run.toml", *(f"{name}.parquet" for name in TABLES))
DIGEST = "tables_sha256"  # in run.toml, over all tables, so that tables of different records are not mixed
REQUEST_COLUMNS, STEP_COLUMNS, SPAN_COLUMNS = list(REQUESTS), list(STEPS), list(SPANS)


class SegmentTime(NamedTuple):
    """When a segment ran on the device, and its solo duration (nan if unknown), in seconds."""

    segment: Segment
    start_s: float
    end_s: float
    solo_s: float = float("nan")


@dataclass
class Run:
    """A live or simulated run.

    info: plain values for run.toml: kind ("live" or "simulated"), architecture, workload, seed, versions, ...
    requests, steps, spans: tables with the columns above.
    tapes: request id -> int8 array with one entry per output token: 1 if the draft model would have proposed it, 0 if
    not, -1 if unknown. Entry 0 (prefill) is -1.
    """

    info: dict[str, Any]
    requests: pd.DataFrame
    steps: pd.DataFrame
    spans: pd.DataFrame
    tapes: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.info.get("name", self.info.get("architecture", {}).get("name", "run")))

    @property
    def finished(self) -> pd.DataFrame:
        """The requests that finished."""
        return self.requests[self.requests["status"] == Status.FINISHED]

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last finish."""
        return float(self.requests["finish_s"].max() - self.requests["arrival_s"].min())

    def save(self, folder: Path) -> Path:
        """Write the record and return the folder.

        A record that is already there is replaced as a whole or, if this fails or is killed, not at all. Other files
        are kept. Raises InputError if another process writes to the folder.
        """
        tapes = pd.DataFrame({"request": list(self.tapes), "bits": [t.tolist() for t in self.tapes.values()]})
        tables = {"requests": self.requests, "steps": self.steps, "spans": self.spans, "tapes": tapes}
        contents = {f"{name}.parquet": _parquet(table) for name, table in tables.items()}
        info = {"schema_version": SCHEMA_VERSION, DIGEST: _digest(contents), **self.info}
        replace_files(folder, {"run.toml": tomli_w.dumps(info).encode(), **contents}, RUN_FILES)
        return folder

    @staticmethod
    def load(folder: Path | str) -> Run:
        """Read a record.

        Raises InputError if it is missing, damaged, incomplete or inconsistent, has a schema version that cannot be
        read, or has tables other than those that it was saved with.
        """
        folder = Path(folder)
        version, info = read_info(folder)
        digest = info.pop(DIGEST, None)
        tables = read_tables(folder, version)
        requests = tables["requests"]
        longest = dict(zip(requests["request"].tolist(), requests["output_tokens"].tolist(), strict=True))
        tapes = read_tapes("run", folder / "tapes.parquet", AGAIN, longest)
        if digest is not None and digest != _digest({n: (folder / n).read_bytes() for n in RUN_FILES[1:]}):
            remedy = "the tables do not belong to this run.toml; record the run again"
            raise InputError("run", str(folder), remedy)
        return Run(info, **tables, tapes=tapes)


def read_info(folder: Path) -> tuple[int, dict[str, Any]]:
    """Read the schema version and the info of a record, but no table. Raises InputError as Run.load does."""
    finish(folder, RUN_FILES)
    path = folder / "run.toml"
    if not path.is_file():
        raise InputError("run", str(folder), "no run.toml there; give the folder of a run")
    return read_settings(path, SCHEMA_VERSION)


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    repeated = [name for name in table if table[name].dtype.kind != "f"]  # hardly two numbers of a column are equal
    table.to_parquet(buffer, index=False, use_dictionary=repeated if len(repeated) < table.shape[1] else True)
    return buffer.getvalue()


def _digest(contents: Mapping[str, bytes]) -> str:
    """Return a digest of the files' contents, in order of their names."""
    digests = [hashlib.sha256(content).digest() for _, content in sorted(contents.items())]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _recordable(value: Any) -> int:
    """Return a whole number that fits a table, and -1 for anything else (which the request's error names)."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_WHOLE
    return value if whole else -1


class Recorder:
    """Collect what the driver of a scheduler reports, and build the Run."""

    def __init__(self) -> None:
        self._requests: list[tuple[Any, ...]] = []
        self._steps, self._spans = StepRows(), SpanRows()

    def completed(self, batch: Batch, segments: Iterable[SegmentTime], completed_s: float) -> None:
        """Record a batch (after Scheduler.complete) and its segments in order.

        There are no segments if the batch failed, and those of each member in turn if members were run one by one.
        """
        self._steps.add(batch)
        self._spans.add(batch, segments, completed_s)

    def ended(self, state: RequestState) -> None:
        """Record a request that has ended."""
        self._requests.append(
            (state.id, state.arrival_s, state.prefill_start_s, state.prefill_end_s, state.finish_s,
             state.request.prompt_tokens, state.max_tokens, state.emitted, state.verifications, state.drafted,
             state.accepted, state.rejected, state.discarded, str(state.status), state.finish_reason, state.error)
        )  # fmt: skip

    def rejected(self, request: Request, now: float, error: Exception) -> None:
        """Record a request that was rejected on submission. If its id is not valid, it gets no row."""
        if _recordable(request.id) != request.id or request.id < 0:
            return
        id_, prompt, limit = (_recordable(n) for n in (request.id, request.prompt_tokens, request.max_tokens))
        self._requests.append(
            (id_, now, None, None, now, prompt, limit, 0, 0, 0, 0, 0, 0, str(Status.REJECTED), "rejected", str(error))
        )

    def run(self, info: Mapping[str, Any], tapes: Mapping[int, np.ndarray] | None = None) -> Run:
        """Return the record, with requests in order of id."""
        requests = pd.DataFrame(self._requests, columns=REQUEST_COLUMNS).sort_values("request", ignore_index=True)
        for column in ("prefill_start_s", "first_token_s", "finish_s"):
            requests[column] = requests[column].astype(float)
        return Run(
            dict(info), requests, self._steps.table(), self._spans.table(), dict(sorted((tapes or {}).items()))
        )
