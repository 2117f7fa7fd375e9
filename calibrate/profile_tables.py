"""Check the settings and tables of a profile when it is read or created. calibrate.profile explains them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import AfterValidator, Field

from calibrate.contention import LEAST_RATE
from engines.errors import InputError
from engines.policy.architecture import Segment, Step
from engines.policy.segment_shape import SegmentShape
from engines.storage.reading import read_bytes
from engines.storage.tables import Column, first
from engines.storage.validation import Count, Record, Text, Whole

QUANTILES = {"p05_ms": 0.05, "p25_ms": 0.25, "p50_ms": 0.5, "p75_ms": 0.75, "p95_ms": 0.95}
LEAST_MS, MOST_MS = 1e-6, 1e9  # range of durations: from below the resolution of a clock to twelve days
MOST_OF_ANY = 1e9  # tokens, requests, repeats, kernels
HIGHEST_RATE = 1.05  # rates can be measured slightly above 1
_COUNT = Column("whole", least=1, most=MOST_OF_ANY)
_WHOLE = Column("whole", least=0, most=MOST_OF_ANY)
_KERNELS = Column("number", least=1, most=MOST_OF_ANY)
_DURATION = Column("number", least=LEAST_MS, most=MOST_MS)
HOST_TIME = Column("number", least=0, most=MOST_MS)
_DIFFERENCE = Column("number", least=-MOST_MS, most=MOST_MS)
_SHARE = Column("number", least=0, most=1)
_SEGMENT, _STEP = Column("text", among=tuple(Segment)), Column("text", among=tuple(Step))
_CONTEXT = Column("number", least=0, most=MOST_OF_ANY)
KEY = list(SegmentShape._fields)
_POINT = dict(zip(KEY, (_SEGMENT, _COUNT, _WHOLE, _COUNT, _CONTEXT), strict=True))
TABLES: dict[str, dict[str, Column]] = {
    "stage_costs": {
        **_POINT, "kernels": _KERNELS, "repeats": _COUNT, **dict.fromkeys(QUANTILES, _DURATION), "mean_ms": _DURATION,
    },
    "host_times": {
        "step": _STEP, "before_ms": HOST_TIME, "before_per_request_ms": HOST_TIME, "wake_up_ms": _DIFFERENCE,
        "beside_ms": HOST_TIME, "after_ms": HOST_TIME, "after_per_request_ms": HOST_TIME,
    },
    "contention": {
        "group": Column("text"), **_POINT, "solo_ms": _DURATION, "kernels": _KERNELS,
        "rate": Column("number", least=LEAST_RATE, most=HIGHEST_RATE),
    },
    "acceptance": {
        "position": _COUNT, "rate": _SHARE, "requests": _COUNT, "alpha_mean": _SHARE, "alpha_sd": _SHARE,
    },
}  # fmt: skip
COLUMNS = {name: list(columns) for name, columns in TABLES.items()}
STAGE_COST_COLUMNS, HOST_COLUMNS = COLUMNS["stage_costs"], COLUMNS["host_times"]
CONTENTION_COLUMNS, ACCEPTANCE_COLUMNS = COLUMNS["contention"], COLUMNS["acceptance"]
AGAIN = "run `pdv calibrate` again"
MOST_CSV_BYTES = 64 << 20  # five times as much as a profile with a hundred thousand points


def _rising(sizes: list[int]) -> list[int]:
    if sizes != sorted(set(sizes)):
        raise ValueError("needs rising whole numbers")
    return sizes


class ProfileSettings(Record):
    """The settings in profile.toml, without the schema version."""

    device: Text
    pair: Text
    dtype: Text
    date: Text
    command: Text
    versions: dict[str, str]
    max_context: Count
    draft_length: Count
    batch_buckets: Annotated[list[Count], AfterValidator(_rising), Field(default_factory=list)]
    token_buckets: Annotated[list[Count], AfterValidator(_rising), Field(default_factory=list)]
    fingerprint: Text | None = None
    averaged: Count | None = None
    rows: Annotated[dict[str, Whole], Field(default_factory=dict)]


def read_csv(path: Path, field: str = "profile", remedy: str = AGAIN) -> pd.DataFrame:
    """Read a table with every cell as text, so that error messages can quote bad ones. Raises InputError with the
    field and the remedy."""
    content = read_bytes(field, path, MOST_CSV_BYTES, f"the table is missing or damaged: {remedy}")
    try:
        lines = list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(field, str(path), f"not a readable CSV table ({error}); {remedy}") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not any(lines[0]):
        raise InputError(field, str(path), f"not a readable CSV table (no columns); {remedy}")
    if not content.endswith(b"\n"):
        raise InputError(field, str(path), f"the last line is incomplete: the table is truncated; {remedy}")
    header, *rows = lines
    for column in header:
        if header.count(column) > 1:
            raise InputError(field, str(path), f"column {column} appears twice; {remedy}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{path} line {number}", f"{len(row)} cells", f"needs {len(header)}; {remedy}")
    return pd.DataFrame(rows, columns=header, dtype=object).replace("", None)


def check_table(name: str, table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the table with its columns in order and its numbers parsed. Raises InputError."""
    for column in TABLES[name]:
        if column not in table:
            raise InputError(where, ", ".join(map(str, table.columns)), f"column {column} is missing; {AGAIN}")
    if table.empty:
        raise InputError(where, "no rows", f"the table is empty; {AGAIN}")
    table = table[COLUMNS[name]].reset_index(drop=True).copy()
    for column, kind in TABLES[name].items():
        if kind.kind == "text":
            _refuse(where, table, column, kind.first_wrong(table[column]), kind.wanted)
            table[column] = table[column].astype(str)
        else:
            table[column] = numbers(where, table, column, kind)
    return table


def numbers(where: str, table: pd.DataFrame, column: str, kind: Column) -> pd.Series:
    """Return a column of text or numbers as numbers. Raises InputError."""
    numbers = pd.to_numeric(table[column], errors="coerce").astype(float)
    fraction = first(numbers != numbers.round()) if kind.kind == "whole" else None  # also not a number
    _refuse(where, table, column, fraction, kind.wanted)
    _refuse(where, table, column, kind.first_wrong(numbers), kind.wanted)
    return numbers.astype(int) if kind.kind == "whole" else numbers


def _refuse(where: str, table: pd.DataFrame, column: str, row: int | None, reason: str) -> None:
    """Raise InputError for a row, if given. Lines are numbered as in the file, where the header is line 1."""
    if row is not None:
        raise InputError(f"{where} line {row + 2} column {column}", table[column].iloc[row], f"{reason}; {AGAIN}")


def check_meaning(costs: pd.DataFrame, host_times: pd.DataFrame, acceptance: pd.DataFrame) -> None:
    """Check relations between the columns and rows of a profile's tables. Raises InputError."""
    quantiles = costs[list(QUANTILES)].to_numpy()
    falls = (np.diff(quantiles, axis=1) < 0).any(axis=1)
    _refuse("stage_costs.csv", costs, "p95_ms", first(falls), "quantiles must rise")
    _refuse("stage_costs.csv", costs, "segment", first(costs.duplicated(KEY)), "this point appears twice")
    for segment in Segment:
        if segment not in set(costs["segment"]):
            raise InputError("stage_costs.csv", segment, f"the segment was never measured; {AGAIN}")
    _refuse("host_times.csv", host_times, "step", first(host_times.duplicated("step")), "this step appears twice")
    negative = host_times["before_ms"] + host_times["wake_up_ms"] < -LEAST_MS
    _refuse(
        "host_times.csv", host_times, "wake_up_ms", first(negative), "before_ms and it cannot be negative together"
    )
    for step in Step:
        if step not in set(host_times["step"]):
            raise InputError("host_times.csv", step, f"the step was never measured; {AGAIN}")
    positions = acceptance["position"].to_numpy()
    expected = np.arange(1, len(positions) + 1)
    _refuse("acceptance.csv", acceptance, "position", first(positions != expected), "positions must count 1, 2, ...")
    rises = np.diff(acceptance["rate"].to_numpy(), prepend=1.0) > 0
    _refuse("acceptance.csv", acceptance, "rate", first(rises), "unconditional rates cannot rise with the position")
