"""The results of a sweep on disk: chunks that are only ever added, and the table that they end in.

A chunk is written beside its place and renamed, so that a killed sweep has all of a chunk or nothing of it. Rows are
known by their fingerprint.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pyarrow

from engines.storage.files import replaced
from experiments.sweep.simulation import Row
from experiments.sweep.table import NAMES, PLACE

SETTINGS, ROWS, SUMMARY = "sweep.toml", "rows.parquet", "summary.parquet"
FILES = (SETTINGS, ROWS, SUMMARY)
CHUNKS, RECORDS, FIGURES = "chunks", "records", "figures"
HIDDEN = ".pdv-*.*"  # what a kill leaves of a file that was being written
NOT_RESULTS = [name for name in (*PLACE, "status", *NAMES) if name != "fingerprint"]
WRITE_S = 0.5
"""Rows are held back for this long at most, seconds, so that many workers do not write many files."""


class Results:
    """The results in a folder. Only a process that has locked the folder may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._chunks = folder, folder / CHUNKS
        self._pending: list[Row] = []
        for left in (*folder.glob(HIDDEN), *self._chunks.glob(HIDDEN)):
            left.unlink()
        self._next = 1 + max((int(path.stem) for path in self._files()), default=0)
        self._written_s = time.monotonic()

    def load(self) -> pd.DataFrame:
        """Return the latest result of each row, by fingerprint. Unreadable files count as missing."""
        frames = [frame for path in (self._folder / ROWS, *self._files()) if (frame := _read(path)) is not None]
        if not frames:
            return pd.DataFrame({"error": pd.Series(dtype=str)}, index=pd.Index([], name="fingerprint"))
        together = pd.concat(frames, ignore_index=True).drop_duplicates("fingerprint", keep="last")
        together["error"] = together["error"].fillna("")
        return together.set_index("fingerprint")

    def add(self, rows: Iterable[Row]) -> None:
        """Add results, and write them if the last chunk is old enough."""
        self._pending += rows
        if time.monotonic() - self._written_s >= WRITE_S:
            self.flush()

    def flush(self) -> None:
        """Write what is held back as a chunk."""
        if self._pending:
            with replaced(self._chunks / f"{self._next:06}.parquet") as beside:
                pd.DataFrame(self._pending).to_parquet(beside, index=False)
            self._next += 1
            self._pending = []
        self._written_s = time.monotonic()

    def finish(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write tables by file name, ROWS among them, then remove the chunks, which are in it."""
        for name, table in tables.items():
            with replaced(self._folder / name) as beside:
                table.to_parquet(beside, index=False, compression="zstd")
        for path in self._files():
            path.unlink()
        with suppress(OSError):  # other files are kept
            self._chunks.rmdir()

    def _files(self) -> Sequence[Path]:
        return sorted(path for path in self._chunks.glob("*.parquet") if path.stem.isdecimal())


def _read(path: Path) -> pd.DataFrame | None:
    try:
        frame = pd.read_parquet(path)
    except (OSError, pyarrow.ArrowException):
        return None
    if not {"fingerprint", "error"} <= set(frame):
        return None
    return frame.drop(columns=[name for name in NOT_RESULTS if name in frame])
