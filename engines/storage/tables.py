"""Read Parquet tables and find the first cell that breaks the rules for its column. Needs no torch.

All checks run over whole columns, so that checking a table of millions of rows takes no longer than loading it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet

from engines.errors import MOST_WHOLE, InputError
from engines.storage.reading import require_file

MOST_TABLE_BYTES = 4 << 30
MOST_ROWS = 100_000_000  # of a table: tens of gigabytes in memory


@dataclass(frozen=True)
class Column:
    """The rules for a column.

    kind: of the values. least, most: bounds of numbers. empty: whether values may be missing. among: the allowed
    texts; empty allows any.
    """

    kind: Literal["whole", "number", "text", "flag"]
    least: float = -math.inf
    most: float = math.inf
    empty: bool = False
    among: tuple[str, ...] = ()

    @property
    def wanted(self) -> str:
        """The rules in words."""
        if self.among:
            return f"needs one of {', '.join(self.among)}"
        if self.kind in ("text", "flag"):
            return "needs a text" if self.kind == "text" else "needs true or false"
        bounds = [f"from {self.least:g}"] if math.isfinite(self.least) else []
        bounds += [f"up to {self.most:g}"] if math.isfinite(self.most) else []
        return f"needs a {'whole ' if self.kind == 'whole' else ''}number {' '.join(bounds)}".rstrip()

    def fits(self, kind: pa.DataType) -> bool:
        """Return whether a Parquet column of this type contains such values."""
        types = pa.types
        if self.kind == "text":
            return types.is_string(kind) or types.is_large_string(kind)
        if self.kind == "flag":
            return types.is_boolean(kind)
        return types.is_integer(kind) or (self.kind == "number" and types.is_floating(kind))

    def first_wrong(self, values: pd.Series) -> int | None:
        """Return the index of the first value that is missing or out of bounds. All must be of the right kind."""
        missing = values.isna().to_numpy()
        if self.kind == "text":
            wrong = ~values.isin(self.among).to_numpy() if self.among else np.zeros(len(values), dtype=bool)
        elif self.kind == "flag":
            wrong = np.zeros(len(values), dtype=bool)
        else:
            numbers = values.to_numpy()
            most = min(self.most, MOST_WHOLE) if self.kind == "whole" else self.most
            wrong = (numbers < self.least) | (numbers > most)
            if numbers.dtype.kind == "f":
                wrong |= np.isinf(numbers)
        return first(wrong & ~missing if self.empty else wrong | missing)


def first(wrong: Any) -> int | None:
    """Return the index of the first true entry, or None."""
    wrong = np.asarray(wrong, dtype=bool)
    place = int(wrong.argmax()) if len(wrong) else 0
    return place if len(wrong) and wrong[place] else None


@dataclass(frozen=True)
class Table:
    """A table in a file, for error messages. remedy: what to do if it is damaged."""

    field: str
    path: Path
    remedy: str

    def refuse(self, table: pd.DataFrame, column: str, row: int | None, reason: str) -> None:
        """Raise InputError with the value in this row (counted from 0), unless `row` is None."""
        if row is not None:
            value = table[column].iloc[row]
            raise self.error(column, row, value.item() if isinstance(value, np.generic) else value, reason)

    def error(self, column: str, row: int, value: object, reason: str) -> InputError:
        return InputError(f"{self.field} {self.path} row {row} column {column}", value, f"{reason}; {self.remedy}")

    def read(self, columns: Mapping[str, Column]) -> pd.DataFrame:
        """Read these columns of the Parquet file, in this order. Raises InputError if one breaks its rules."""
        found = read_parquet(self.field, self.path, columns, self.remedy)
        for name, column in columns.items():
            values = found[name]
            if len(values) and not column.fits(values.type):
                raise self.error(name, 0, values[0].as_py(), f"{column.wanted}, but the column has {values.type}")
            if values.null_count and not column.empty:
                raise self.error(name, first(values.is_null()) or 0, None, column.wanted)
        table = found.to_pandas(ignore_metadata=True)
        for name, column in columns.items():
            self.refuse(table, name, column.first_wrong(table[name]), column.wanted)
        return table


def read_parquet(field: str, path: Path, columns: Collection[str], remedy: str) -> pa.Table:
    """Read these columns of a Parquet file, in this order and unchecked.

    Raises InputError as engines.storage.reading.require_file does, for a file that is not readable Parquet, and for a
    missing or duplicate column.
    """
    require_file(field, path, MOST_TABLE_BYTES, f"missing or damaged: {remedy}")
    try:
        with parquet.ParquetFile(path) as file:
            rows, names = file.metadata.num_rows, file.schema_arrow.names
            for column in columns:
                if names.count(column) != 1:
                    problem = "is a duplicate" if column in names else "is missing"
                    raise InputError(field, str(path), f"column {column} {problem}; {remedy}")
            if not 0 <= rows <= MOST_ROWS:
                raise InputError(field, str(path), f"it has {rows} rows, but the limit is {MOST_ROWS}; {remedy}")
            table = file.read(columns=list(columns)).select(list(columns))
            table = table.replace_schema_metadata()  # pandas metadata: to_pandas parses it even if told to ignore it
        table.validate(full=True)
    except InputError:
        raise
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError, pa.ArrowException) as error:
        # pyarrow raises its own exceptions, but also built-in ones for some kinds of damage
        raise InputError(field, str(path), f"missing or damaged ({type(error).__name__}); {remedy}") from error
    if table.num_rows != rows:
        raise InputError(field, str(path), f"missing or damaged: it should have {rows} rows; {remedy}")
    return table
