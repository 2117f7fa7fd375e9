"""Export a run as a Chrome trace for ui.perfetto.dev or chrome://tracing.

Devices are processes, lane workers are threads and segments are slices. One more process has a row per request, with
its waiting, prefill and decode, and counters of the requests that wait for a slot and hold one. The format is the
JSON object of the Trace Event Format, with times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from engines.record.run import Run
from engines.storage.files import replaced

REQUESTS_PROCESS = 1000
"""Process ID of the request rows; device IDs start at 0."""


def export(run: Run, path: Path) -> Path:
    """Write the trace of a live or simulated run as JSON."""
    trace = {"traceEvents": events(run), "displayTimeUnit": "ms", "otherData": {"run": run.name}}
    with replaced(path) as beside:
        beside.write_text(json.dumps(trace, separators=(",", ":")), encoding="utf-8")
    return path


def events(run: Run) -> list[dict[str, Any]]:
    """Return the names of processes and threads, then all events in order of time."""
    timed = sorted([*_segments(run), *_requests(run.requests), *_counters(run.requests)], key=lambda e: e["ts"])
    return [*_names(run), *timed]


def _threads(spans: pd.DataFrame) -> dict[tuple[int, str, int], int]:
    """Return the thread ID of each (device, lane, worker), in order of streams."""
    order = spans.sort_values(["device", "stream", "lane", "worker"])[["device", "lane", "worker"]].drop_duplicates()
    return {(int(d), str(lane), int(w)): i + 1 for i, (d, lane, w) in enumerate(order.itertuples(index=False))}


def _names(run: Run) -> Iterator[dict[str, Any]]:
    def named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
        return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}

    device = run.info.get("device", "device")
    for index in sorted(set(run.spans["device"].tolist())):
        yield named("process_name", index, 0, f"{device} {index} ({run.name})")
    for (index, lane, worker), thread in _threads(run.spans).items():
        yield named("thread_name", index, thread, f"{lane} {worker}")
    yield named("process_name", REQUESTS_PROCESS, 0, "requests")


def _segments(run: Run) -> Iterator[dict[str, Any]]:
    threads = _threads(run.spans)
    members = run.steps.groupby("batch_id")["request"].apply(lambda ids: [int(i) for i in ids]).to_dict()
    for span in run.spans.to_dict("records"):
        yield {
            "ph": "X",
            "name": span["segment"],
            "cat": span["step"],
            "pid": int(span["device"]),
            "tid": threads[int(span["device"]), span["lane"], int(span["worker"])],
            "ts": _us(span["start_s"]),
            "dur": _us(span["end_s"]) - _us(span["start_s"]),
            "args": {
                "batch_id": int(span["batch_id"]),
                "batch_size": int(span["batch_size"]),
                "k": int(span["draft_length"]),
                "tokens": int(span["tokens"]),
                "context_tokens": round(float(span["context_tokens"]), 1),
                "hybrid": bool(span["hybrid"]),
                "requests": members.get(span["batch_id"], []),
            },
        }


def _requests(requests: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield nestable asynchronous slices: the request and, inside it, waiting, prefill and decode if it got there."""
    for row in requests.to_dict("records"):
        args = {
            "prompt_tokens": int(row["prompt_tokens"]),
            "output_tokens": int(row["output_tokens"]),
            "accepted": int(row["accepted"]),
            "drafted": int(row["drafted"]),
            "status": row["status"],
        }
        yield from _slice(row["request"], f"request {row['request']}", row["arrival_s"], row["finish_s"], args)
        edges = {
            "waiting": (row["arrival_s"], row["prefill_start_s"]),
            "prefill": (row["prefill_start_s"], row["first_token_s"]),
            "decode": (row["first_token_s"], row["finish_s"]),
        }
        for name, (start_s, end_s) in edges.items():
            if pd.notna(start_s) and pd.notna(end_s):
                yield from _slice(row["request"], name, start_s, end_s, {})


def _slice(request: int, name: str, start_s: float, end_s: float, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
    both = {"cat": "request", "id": int(request), "name": name, "pid": REQUESTS_PROCESS, "tid": 0}
    yield {"ph": "b", "ts": _us(start_s), "args": args, **both}
    yield {"ph": "e", "ts": _us(end_s), **both}


def _counters(requests: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the numbers of requests that wait for a slot and that hold one, whenever they change."""
    admitted = requests["prefill_start_s"]
    left_queue = admitted.fillna(requests["finish_s"])
    changes = pd.concat(
        [
            pd.DataFrame({"t": requests["arrival_s"], "waiting": 1, "active": 0}),
            pd.DataFrame({"t": left_queue, "waiting": -1, "active": admitted.notna().astype(int)}),
            pd.DataFrame({"t": requests.loc[admitted.notna(), "finish_s"], "waiting": 0, "active": -1}),
        ]
    )
    totals = changes.groupby("t").sum().cumsum()
    for time_s, waiting, active in totals.itertuples():
        yield {
            "ph": "C",
            "name": "requests",
            "pid": REQUESTS_PROCESS,
            "ts": _us(time_s),
            "args": {"waiting": int(waiting), "active": int(active)},
        }


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
