"""The table of an experiment, with one row per cell, repeat and kind of run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from calibrate.profile_tables import read_csv
from engines.errors import InputError
from engines.record.metrics import summary
from engines.record.run import Run
from engines.storage.files import replaced
from experiments.runner.cells import CELL_COLUMNS, cell_of

FINISHED, FAILED = "finished", "failed"
REMEDY = "run `pdv experiment` again"
KINDS = ("live", "simulated", "replay", "blind")
FACTS = ["cell", *CELL_COLUMNS, "repeat", "kind", "status", "error", "checked", "equal"]
KEY = ("cell", "repeat", "kind")
Key = tuple[str, int | str, str]


def booked(path: Path) -> list[Key]:
    """The rows of a table of cells that were booked with a run, in order. Raises InputError."""
    rows = read_csv(path, "experiment", REMEDY)
    if not {*KEY, "architecture"} <= set(rows):
        raise InputError("experiment", str(path), f"not a table of cells; {REMEDY}")
    return list(rows.loc[rows["architecture"].notna(), list(KEY)].itertuples(index=False, name=None))


class CellTable:
    """Rows in grid order, saved as a CSV file."""

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path, self._order = path, {name: place for place, name in enumerate(names)}
        self._rows: dict[Key, dict[str, Any]] = {}

    def add(self, key: Key, outcome: Run | str) -> None:
        """Add a run, or the error of a failed one. A run with a wrong output counts as failed."""
        row: dict[str, Any] = dict(zip(KEY, key, strict=True))
        if isinstance(outcome, str):
            row |= {"status": FAILED, "error": outcome}
        else:
            exactness = outcome.info.get("exactness", {})
            wrong = exactness.get("checked", 0) - exactness.get("equal", 0)
            error = f"{wrong} of {exactness['checked']} outputs are wrong: {exactness['first']}" if wrong else ""
            row |= {**cell_of(outcome)._asdict(), "status": FAILED if wrong else FINISHED, "error": error}
            row |= {name: exactness[name] for name in ("checked", "equal") if exactness}
            row |= summary(outcome)
        self._rows[key] = row

    def save(self) -> None:
        """Write the rows, if there are any."""
        if self._rows:
            with replaced(self.path) as beside:
                self.frame().to_csv(beside, index=False, float_format="%.6g")

    def frame(self) -> pd.DataFrame:
        """Return all rows: the columns FACTS, then those of engines.record.metrics.summary."""
        rows = sorted(
            self._rows.values(), key=lambda r: (self._order[r["cell"]], KINDS.index(r["kind"]), r["repeat"])
        )
        frame = pd.DataFrame(rows)
        return frame.reindex(columns=[*FACTS, *(name for name in frame if name not in FACTS)])

    def failures(self) -> list[str]:
        """Return one line per failed row."""
        rows = self._rows.items()
        return [f"{cell}, repeat {n}, {kind}: {row['error']}" for (cell, n, kind), row in rows if row["error"]]
