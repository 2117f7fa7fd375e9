"""Keep finished parts of a calibration on disk until the profile is written. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from calibrate.profile_tables import COLUMNS
from engines.errors import InputError
from engines.storage.files import remove_files, replaced
from engines.storage.tables import read_parquet

STAMP = "settings.json"
MARK = ".pdv-parts"  # file that marks a folder as created for parts, so that it may be removed
TABLES = ("stage_costs", "contention")
_FILES = (STAMP, *(f"{name}.parquet" for name in TABLES))


def check_parts(folder: Path) -> None:
    """Raise InputError if the path exists and was not created for parts."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError("out", str(folder), "unfinished parts go into a folder of this name; move this file or link")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        remedy = "unfinished parts go here, but this folder was not made by a calibration; move or rename it"
        raise InputError("out", str(folder), remedy)


def remove_parts(folder: Path) -> None:
    """Remove the parts, if any, and their folder unless it contains something else."""
    check_parts(folder)
    if folder.is_dir():
        beside = sorted(path.name for path in folder.glob(".pdv-*") if path.name != MARK)  # left by a kill
        remove_files(folder, (*_FILES, *beside, MARK))


class Parts:
    """The parts of one calibration. Parts of a calibration with other settings are removed.

    folder: where to keep them, or None to keep none. Raises InputError if the folder was not created for parts.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        if folder is None:
            return
        check_parts(folder)
        text, stamp = json.dumps(settings, sort_keys=True), folder / STAMP
        if not (stamp.is_file() and stamp.read_text() == text):
            remove_parts(folder)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MARK).touch()
            with replaced(stamp) as beside:
                beside.write_text(text)

    def get(self, name: str, measure: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Return a part that was kept, or measure it now. name: one of TABLES."""
        path = self.folder / f"{name}.parquet" if self.folder else None
        if path and path.is_file():
            try:
                return read_parquet("part", path, COLUMNS[name], "measure it again").to_pandas()
            except InputError:
                pass  # damaged: measure it again
        table = measure()
        if path:
            with replaced(path) as beside:
                table.to_parquet(beside, index=False)
        return table
