"""Read request traces of other systems as open-loop workloads.

The formats are the Azure LLM inference traces, BurstGPT, Mooncake and a generic one, told apart by their columns.
Each may be CSV or JSON lines, plain or gzipped.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.errors import InputError, require_whole
from engines.policy.request import LATEST_S, MOST_TOKENS, Request
from engines.workload.trace_rows import shortened, trace_rows
from engines.workload.workload import MOST_REQUESTS, Workload


@dataclass(frozen=True)
class _Format:
    """Columns of a trace format.

    seconds: converts a value of the time column to seconds, or raises ValueError.
    zero_output_is_failure: rows with 0 output tokens are failed responses and are left out.
    """

    name: str
    time: str
    prompt: str
    output: str
    seconds: Callable[[Any], float]
    zero_output_is_failure: bool = False

    @property
    def columns(self) -> tuple[str, str, str]:
        return self.time, self.prompt, self.output


def _clock(value: Any) -> float:
    """Convert a date and time to seconds since 1970. Without a time zone, it counts as UTC."""
    moment = datetime.fromisoformat(str(value))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


FORMATS = (
    _Format("azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", _clock),
    _Format("burstgpt", "Timestamp", "Request tokens", "Response tokens", float, zero_output_is_failure=True),
    _Format("mooncake", "timestamp", "input_length", "output_length", lambda ms: float(ms) / 1000),
    _Format("generic", "timestamp", "prompt_tokens", "output_tokens", float),
)
KNOWN = "; ".join(f"{f.name} ({', '.join(f.columns)})" for f in FORMATS)


def read_trace(
    path: str | Path, limit: int | None = None, max_prompt: int | None = None, max_output: int | None = None
) -> Workload:
    """Read a trace as an open loop. The first arrival is at 0, and ids are in order of arrival.

    Rows may be in any order. The first `limit` requests by arrival are kept. Longer prompts and outputs are cut to
    max_prompt and max_output tokens. BurstGPT rows with 0 response tokens are failed responses: they are left out and
    counted in info["failed_left_out"].

    Raises InputError with the file, line and column, also for times beyond LATEST_S, for counts beyond MOST_TOKENS
    and, without a limit, for more than MOST_REQUESTS requests.
    """
    path = Path(path)
    for name, value in (("limit", limit), ("max_prompt", max_prompt), ("max_output", max_output)):
        if value is not None:
            require_whole(name, value, 1)
    rows = trace_rows(path)
    head = next(rows, None)
    if head is None:
        raise _nothing_in(path)
    kind, failed = _detect(f"trace {path.name}, line {head[0]}", head[1]), 0

    def usable() -> Iterator[tuple[float, int, int]]:
        nonlocal failed
        for line, row in rows:
            at, prompt, output = _read_row(kind, row, f"trace {path.name}, line {line}")
            if output == 0:
                failed += 1
            else:
                yield at, prompt, output

    arrivals = _earliest(path, usable(), limit)
    if not arrivals:
        raise _nothing_in(path)
    first = arrivals[0][0]
    requests = tuple(  # to the microsecond: seconds since 1970 are no more precise than that
        Request(i, _capped(prompt, max_prompt), _capped(output, max_output), round(at - first, 6))
        for i, (at, prompt, output) in enumerate(arrivals)
    )
    info: dict[str, Any] = {"kind": "trace", "trace": path.name, "format": kind.name, "count": len(requests)}
    given = {"max_prompt": max_prompt, "max_output": max_output, "failed_left_out": failed or None}
    asked = [(request.prompt_tokens, request.max_tokens, request.arrival_s) for request in requests]
    # Different traces may have the same name.
    info["trace_digest"] = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
    return Workload(requests, info=info | {name: value for name, value in given.items() if value is not None})


def _capped(tokens: int, limit: int | None) -> int:
    return tokens if limit is None else min(tokens, limit)


def _nothing_in(path: Path) -> InputError:
    return InputError("trace", str(path), "it contains no usable request; give a trace with at least one")


def _earliest(
    path: Path, arrivals: Iterator[tuple[float, int, int]], limit: int | None
) -> list[tuple[float, int, int]]:
    """Return the first `limit` arrivals by time, or all. Only those that are kept are held in memory."""
    if limit is not None:
        return heapq.nsmallest(min(limit, MOST_REQUESTS), arrivals, key=lambda arrival: arrival[0])
    kept = sorted(itertools.islice(arrivals, MOST_REQUESTS + 1), key=lambda arrival: arrival[0])
    if len(kept) > MOST_REQUESTS:
        raise InputError("trace", str(path), f"more than {MOST_REQUESTS} requests; give a limit to keep the first")
    return kept


def _detect(where: str, row: Mapping[str, Any]) -> _Format:
    """Return the format that shares the most columns with a row. Raises InputError if the row lacks one of them."""
    shared = [sum(column in row for column in kind.columns) for kind in FORMATS]
    found = shortened(", ".join(row))
    if max(shared) == 0 or shared.count(max(shared)) > 1:
        raise InputError(where, found, f"unknown format; known: {KNOWN}")
    kind = FORMATS[shared.index(max(shared))]
    for column in kind.columns:
        if column not in row:
            remedy = f"column {column} is missing; the {kind.name} format needs {', '.join(kind.columns)}"
            raise InputError(where, found, remedy)
    return kind


def _read_row(kind: _Format, row: Mapping[str, Any], where: str) -> tuple[float, int, int]:
    """Return the time in seconds, prompt tokens and output tokens of a row."""
    for column in kind.columns:
        if row.get(column) is None:
            raise InputError(f"{where}, {column}", None, "the value is missing; complete or remove the line")
    try:
        at = math.nan if isinstance(row[kind.time], bool) else kind.seconds(row[kind.time])
    except (TypeError, ValueError, OverflowError, RecursionError):
        at = math.nan
    if not 0 <= at <= LATEST_S:
        remedy = f"not a valid time for this format, from 0 to {LATEST_S:g} s; repair or remove the line"
        raise InputError(f"{where}, {kind.time}", row[kind.time], remedy)
    return at, _tokens(row, kind.prompt, where, 1), _tokens(row, kind.output, where, 1 - kind.zero_output_is_failure)


def _tokens(row: Mapping[str, Any], column: str, where: str, least: int) -> int:
    value = row[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (number.is_integer() and least <= number <= MOST_TOKENS):
        remedy = f"use a whole number of tokens, at least {least} and at most {MOST_TOKENS}; repair the line"
        raise InputError(f"{where}, {column}", value, remedy)
    return int(number)
