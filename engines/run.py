"""The record of a run, live or simulated alike.

A folder holds `run.toml` (what ran, where, with which resolved settings) and four tables: `requests` (one row a
request), `steps` (one row a request and work), `spans` (one row a work and segment) and `tapes` (the acceptance
tape of each request). Times are seconds after the start of the run; a simulated run has the same columns.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import tomli_w

from engines.architecture import Segment
from engines.errors import InputError
from engines.request import Request, RequestState, Status
from engines.work import Work

SCHEMA_VERSION = 1
REQUIRED = {"kind": str, "architecture": dict, "workload": dict}  # what run.toml must say

REQUEST_COLUMNS = [
    "request", "arrival_s", "prefill_start_s", "first_token_s", "finish_s", "prompt_tokens", "max_tokens",
    "output_tokens", "verifications", "drafted", "accepted", "rejected", "discarded", "status",
    "finish_reason", "error",
]  # fmt: skip
STEP_COLUMNS = [
    "work", "request", "position", "admission_s", "queue_s", "permit_s", "draft_length", "emitted", "accepted",
    "rejected", "discarded",
]  # fmt: skip
SPAN_COLUMNS = [
    "work", "lane", "worker", "device", "stream", "step", "segment", "batch_size", "draft_length", "tokens",
    "context_tokens", "hybrid", "dispatched_s", "start_s", "end_s", "completed_s", "solo_s",
]  # fmt: skip


class SegmentTime(NamedTuple):
    """When a segment ran on the device, and how long it would have taken alone (nan: not known)."""

    segment: Segment
    start_s: float
    end_s: float
    solo_s: float = float("nan")


@dataclass
class Run:
    """What happened.

    info: plain values for run.toml: kind ("live" or "simulated"), architecture, workload, seed, versions, ...
    requests, steps, spans: tables with the columns above. tapes: request id -> int8 array, one entry an output
    token: 1 if the draft model would have proposed it, 0 if not, -1 if unknown; entry 0 (prefill) is -1.
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
        """The requests that got all their tokens."""
        return self.requests[self.requests["status"] == Status.FINISHED]

    @property
    def duration_s(self) -> float:
        """First arrival to last finish."""
        return float(self.requests["finish_s"].max() - self.requests["arrival_s"].min())

    def save(self, folder: Path) -> Path:
        """Write the record; an existing record in the folder is replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.toml").write_text(tomli_w.dumps({"schema_version": SCHEMA_VERSION, **self.info}))
        for name in ("requests", "steps", "spans"):
            getattr(self, name).to_parquet(folder / f"{name}.parquet", index=False)
        tapes = pd.DataFrame({"request": list(self.tapes), "bits": [t.tolist() for t in self.tapes.values()]})
        tapes.to_parquet(folder / "tapes.parquet", index=False)
        return folder

    @staticmethod
    def load(folder: Path) -> Run:
        """Read a record. Raises InputError if it is not there, is incomplete or has another schema version."""
        path = folder / "run.toml"
        if not path.is_file():
            raise InputError("run", str(folder), "no run.toml there; give the folder that `pdv run` wrote")
        try:
            info = tomllib.loads(path.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError("run", str(path), f"not valid TOML ({error}); record the run again") from error
        version = info.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            remedy = f"this version reads {SCHEMA_VERSION}; record the run again"
            raise InputError("run schema_version", version, remedy)
        for key, kind in REQUIRED.items():
            if not isinstance(info.get(key), kind):
                remedy = f"{path} must have it, as a {'table' if kind is dict else 'text'}; record the run again"
                raise InputError(f"run {key}", info.get(key), remedy)
        expected = {"requests": REQUEST_COLUMNS, "steps": STEP_COLUMNS, "spans": SPAN_COLUMNS}
        tables = {name: _read(folder / f"{name}.parquet", columns) for name, columns in expected.items()}
        tapes = _read(folder / "tapes.parquet", ["request", "bits"])
        bits = {
            int(request): np.asarray(tape, dtype=np.int8)
            for request, tape in zip(tapes["request"], tapes["bits"], strict=True)
        }
        return Run(info, **tables, tapes=bits)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError("run", str(path), "missing or damaged; record the run again") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError("run", str(path), f"column {missing[0]} is missing; record the run again")
    return table


def _recordable(value: Any) -> int:
    """A whole number that a table can hold; -1 for anything else (the error of the request says what it was)."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    return value if whole else -1


class Recorder:
    """Collects what the driver of a scheduler reports and makes the Run of it."""

    def __init__(self) -> None:
        self._requests: list[tuple[Any, ...]] = []
        self._steps: list[tuple[Any, ...]] = []
        self._spans: list[tuple[Any, ...]] = []

    def worked(self, work: Work, segments: Iterable[SegmentTime], completed_s: float) -> None:
        """A completed work (after Scheduler.complete). A work that failed may have no segments."""
        members = work.members
        tokens = context = 0
        for state, settlement, wait, k in zip(members, work.settlements, work.waits, work.draft_lengths, strict=True):
            emitted = settlement.emitted if settlement else 0
            position = state.emitted - emitted
            tokens += state.request.prompt_tokens
            context += state.request.prompt_tokens + position
            booked = (settlement.accepted, settlement.rejected, settlement.discarded) if settlement else (0, 0, 0)
            self._steps.append((work.id, state.id, position, *wait, k, emitted, *booked))
        size, longest = len(members), max(work.draft_lengths)
        through = {Segment.DRAFT: size * longest, Segment.VERIFY: size * (longest + 1)}
        for segment, start_s, end_s, solo_s in segments:
            self._spans.append(
                (work.id, work.lane.name, work.worker, work.lane.device, work.lane.stream, str(work.step),
                 str(segment), size, longest, through.get(segment, tokens),
                 context / size, work.hybrid, work.dispatched_s, start_s, end_s, completed_s, solo_s)
            )  # fmt: skip

    def ended(self, state: RequestState) -> None:
        """A request that has left the scheduler."""
        self._requests.append(
            (state.id, state.arrival_s, state.prefill_start_s, state.prefill_end_s, state.finish_s,
             state.request.prompt_tokens, state.max_tokens, state.emitted, state.verifications, state.drafted,
             state.accepted, state.rejected, state.discarded, str(state.status), state.finish_reason, state.error)
        )  # fmt: skip

    def rejected(self, request: Request, now: float, error: Exception) -> None:
        """A request that was refused at the door, perhaps because of what it asked for."""
        id_, prompt, limit = (_recordable(n) for n in (request.id, request.prompt_tokens, request.max_tokens))
        self._requests.append(
            (id_, now, None, None, now, prompt, limit, 0, 0, 0, 0, 0, 0, str(Status.REJECTED), "rejected", str(error))
        )

    def run(self, info: Mapping[str, Any], tapes: Mapping[int, np.ndarray] | None = None) -> Run:
        """The record, ordered by request and by work."""
        requests = pd.DataFrame(self._requests, columns=REQUEST_COLUMNS).sort_values("request", ignore_index=True)
        for column in ("prefill_start_s", "first_token_s", "finish_s"):
            requests[column] = requests[column].astype(float)
        steps = pd.DataFrame(self._steps, columns=STEP_COLUMNS)
        spans = pd.DataFrame(self._spans, columns=SPAN_COLUMNS)
        return Run(dict(info), requests, steps, spans, dict(sorted((tapes or {}).items())))
