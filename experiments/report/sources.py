"""The files of a results folder that a report reads, with their digests."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from calibrate.profile_tables import read_csv
from engines.errors import InputError
from engines.storage.reading import read_bytes, read_toml
from experiments.report.tables import PageTable, of_frame

DIGITS = 16  # of a SHA-256, enough to tell files apart
MOST_BYTES = 1 << 30
REMEDY = "make the results again, or leave the folder out"
TEXTS = ("cell", "architecture", "draft_length", "load", "metric", "run", "cause", "segment", "quantity", "kind",
         "status", "error", "differs", "limits", "first_difference", "system", "note", "mode", "group")  # fmt: skip
"""Columns of CSV tables that hold text. `error` is text in the table of cells, and a number in a comparison."""
LOADS = ("concurrency", "rate", "trace")


class Sources:
    """Reads the files of a folder and keeps a line about each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, tuple[int | None, str]] = {}

    def csv(self, name: str, columns: Collection[str], numbers: Collection[str] = ()) -> pd.DataFrame | None:
        """Return a CSV table, or None if there is none.

        Texts without a value are "". numbers: columns with numbers in spite of TEXTS. Raises InputError for a damaged
        table, and for one that lacks one of the columns.
        """
        path = self.folder / name
        if not path.is_file():
            return None
        frame = read_csv(path, "report", REMEDY)
        _require(path, frame, columns)
        texts = set(TEXTS) - set(numbers)
        for column in frame:
            if column in texts:
                frame[column] = frame[column].fillna("").astype(str)
            else:
                with suppress(ValueError, TypeError):
                    frame[column] = pd.to_numeric(frame[column])
        _require_numbers(path, frame, texts)
        if "load" in columns:
            other = frame[~frame["load"].isin(LOADS) & (frame["architecture"] != "")]
            if len(other):
                raise InputError(f"report {path} column load", other["load"].iloc[0], f"no such load; {REMEDY}")
        self._note(name, len(frame))
        return frame

    def parquet(self, name: str, columns: Collection[str], texts: Collection[str]) -> pd.DataFrame:
        """Return a Parquet table. texts: columns that may hold texts.

        Raises InputError if it is missing, damaged or lacks one of the columns.
        """
        path = self.folder / name
        try:
            frame = pd.read_parquet(path)
        except (OSError, ValueError, TypeError, LookupError, pyarrow.ArrowException) as error:
            remedy = f"missing or damaged ({type(error).__name__}); {REMEDY}"
            raise InputError("report", str(path), remedy) from error
        _require(path, frame, columns)
        _require_numbers(path, frame, texts)
        self._note(name, len(frame))
        return frame

    def toml(self, name: str) -> dict[str, Any]:
        """Return the values of a TOML file; nothing if there is none. Raises InputError for a damaged one."""
        if not (self.folder / name).is_file():
            return {}
        values = read_toml("report", self.folder / name)
        self._note(name, None)
        return values

    def text(self, name: str) -> str:
        """Return the text of a file that was read before."""
        return (self.folder / name).read_text(encoding="utf-8", errors="replace")

    def table(self) -> PageTable:
        """Return what was read: file, rows and SHA-256."""
        rows = [(name, count, digest) for name, (count, digest) in self._read.items()]
        frame = pd.DataFrame(rows, columns=["file", "rows", f"SHA-256 (first {DIGITS} digits)"]).astype(
            {"rows": "Int64"}
        )
        return of_frame(frame, "Files that the numbers come from")

    def _note(self, name: str, rows: int | None) -> None:
        content = read_bytes("report", self.folder / name, MOST_BYTES)
        self._read[name] = rows, hashlib.sha256(content).hexdigest()[:DIGITS]


def _require(path: Path, frame: pd.DataFrame, columns: Collection[str]) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        remedy = f"the table has no column {missing[0]}; {REMEDY}"
        raise InputError("report", str(path), remedy)


def _require_numbers(path: Path, frame: pd.DataFrame, texts: Collection[str]) -> None:
    """Raise InputError for a column that holds anything but finite numbers and nothing, apart from texts."""
    for name in frame:
        numeric = pd.api.types.is_numeric_dtype(frame[name]) or frame[name].isna().all()
        if name not in texts and not (numeric and np.isfinite(frame[name].dropna().astype(float)).all()):
            raise InputError(f"report {path} column", str(name), f"needs numbers; {REMEDY}")
