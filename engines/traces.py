"""Recorded request traces of other systems, read as open-loop workloads.

Formats, told apart by their columns: the Azure LLM inference traces, BurstGPT, Mooncake and a generic form. Each
may be a CSV file or JSON lines.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engines.errors import InputError, require_whole
from engines.lengths import MOST_TOKENS
from engines.reading import require_file
from engines.request import Request
from engines.workload import Workload

MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class _Format:
    """Columns of a trace format. seconds: turns a value of the time column into seconds, or raises ValueError.

    zero_output_is_failure: rows without output tokens are responses that failed, and are left out.
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
    """Seconds since 1970 of a date and time; one without a zone counts as UTC."""
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
    """Read a trace as an open loop whose first arrival is at 0 and whose ids follow the arrivals.

    Rows need not be in order of time; the first `limit` requests by arrival are kept. Longer prompts and outputs
    are cut to max_prompt and max_output tokens. BurstGPT rows with 0 response tokens are failed responses: they
    are left out and counted in info["failed_left_out"]. Raises InputError with the file, line and column.
    """
    path = Path(path)
    for name, value in (("limit", limit), ("max_prompt", max_prompt), ("max_output", max_output)):
        if value is not None:
            require_whole(name, value, 1)
    kind, rows = _open(path)
    arrivals: list[tuple[float, int, int]] = []
    failed = 0
    for line, row in rows:
        at, prompt, output = _read_row(kind, row, f"trace {path.name}, line {line}")
        if output == 0:
            failed += 1
        else:
            arrivals.append((at, prompt, output))
    if not arrivals:
        raise InputError("trace", str(path), "it holds no usable request; give a trace with at least one")
    arrivals.sort(key=lambda arrival: arrival[0])
    first = arrivals[0][0]
    requests = tuple(  # to the microsecond: a date in seconds has no finer digits
        Request(i, _capped(prompt, max_prompt), _capped(output, max_output), round(at - first, 6))
        for i, (at, prompt, output) in enumerate(arrivals[:limit])
    )
    info: dict[str, Any] = {"kind": "trace", "trace": path.name, "format": kind.name, "count": len(requests)}
    given = {"max_prompt": max_prompt, "max_output": max_output, "failed_left_out": failed or None}
    return Workload(requests, info=info | {name: value for name, value in given.items() if value is not None})


def _capped(tokens: int, limit: int | None) -> int:
    return tokens if limit is None else min(tokens, limit)


def _open(path: Path) -> tuple[_Format, Iterator[tuple[int, Mapping[str, Any]]]]:
    """The file's format and its rows, each with its line number."""
    require_file("trace", path, MOST_BYTES)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError("trace", str(path), "not a text file; give a CSV or JSON-lines trace") from error
    except OSError as error:
        raise InputError("trace", str(path), f"cannot read the file ({error.strerror})") from error
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError("trace", str(path), "the file is empty; give a trace with at least one request")
    if first.lstrip().startswith("{"):
        rows = list(_json_rows(path, lines))
        return _detect(path, rows[0][1]), iter(rows)
    reader = csv.DictReader(lines, strict=True)
    kind = _detect(path, dict.fromkeys(reader.fieldnames or ()))
    return kind, _csv_rows(path, reader)


def _json_rows(path: Path, lines: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            where = f"trace {path.name}, line {number}"
            raise InputError(where, _shortened(line), f"not valid JSON ({error}); repair the line") from error
        if not isinstance(row, dict):
            raise InputError(f"trace {path.name}, line {number}", _shortened(line), "write one JSON object a line")
        yield number, row


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        where = f"trace {path.name}, line {reader.line_num + 1}"
        raise InputError(where, "unreadable", f"not valid CSV ({error}); repair the line") from error


def _detect(path: Path, row: Mapping[str, Any]) -> _Format:
    """The format that shares most columns with the file, all of which must be there."""
    shared = [sum(column in row for column in kind.columns) for kind in FORMATS]
    if max(shared) == 0 or shared.count(max(shared)) > 1:
        raise InputError("trace", str(path), f"unknown format with columns {', '.join(row)}; known: {KNOWN}")
    kind = FORMATS[shared.index(max(shared))]
    for column in kind.columns:
        if column not in row:
            remedy = f"column {column} is missing; the {kind.name} format needs {', '.join(kind.columns)}"
            raise InputError("trace", str(path), remedy)
    return kind


def _read_row(kind: _Format, row: Mapping[str, Any], where: str) -> tuple[float, int, int]:
    """Time in seconds, prompt tokens and output tokens of a row."""
    for column in kind.columns:
        if row.get(column) is None:
            raise InputError(f"{where}, {column}", None, "the value is missing; complete or remove the line")
    try:
        at = kind.seconds(row[kind.time])
    except (TypeError, ValueError, OverflowError):
        at = math.nan
    if not (math.isfinite(at) and at >= 0):
        remedy = "not a time of this format, 0 or later; repair or remove the line"
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


def _shortened(line: str) -> str:
    return line if len(line) <= 80 else f"{line[:77]}..."
