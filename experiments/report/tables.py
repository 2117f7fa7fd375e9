"""Tables of the page: from pandas frames, and from the tables that the commands print."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from rich.table import Table


@dataclass(frozen=True)
class Heading:
    """The heading of a column. number: whether the column is aligned right."""

    text: str
    number: bool = False


@dataclass(frozen=True)
class Line:
    """A row. The first cell names it. total: it sums up the rows above. starts: a group of rows starts here."""

    cells: list[str]
    total: bool = False
    starts: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table with a caption. note: a line below it. sources: the files that its numbers come from."""

    caption: str
    headings: list[Heading]
    lines: list[Line]
    note: str = ""
    sources: list[str] = field(default_factory=list)


def of_printed(table: Table, *sources: str, of: str = "") -> PageTable:
    """Return a table that a command prints, with the same texts. of: what its title begins with, to be left out."""
    headings = [
        Heading(_one_line(column.header) or "architecture", column.justify == "right") for column in table.columns
    ]
    columns = [[_one_line(cell) for cell in column.cells] for column in table.columns]
    lines, starts = [], False
    for row, cells in zip(table.rows, zip(*columns, strict=True), strict=True):
        lines.append(Line(list(cells), total=row.style == "bold", starts=starts))
        starts = row.end_section
    title, note = (sentence(_one_line(words)) for words in (str(table.title).removeprefix(f"{of}: "), table.caption))
    return PageTable(title, headings, lines, note, list(sources))


def of_frame(
    frame: pd.DataFrame, caption: str, *sources: str, note: str = "", form: Callable[[Any], str] | None = None
) -> PageTable:
    """Return a frame as it is. form: makes texts of the numbers; by default, `text`."""
    types = pd.api.types
    numeric = [types.is_numeric_dtype(frame[name]) and not types.is_bool_dtype(frame[name]) for name in frame]
    headings = [Heading(str(name).replace("_", " "), number) for name, number in zip(frame, numeric, strict=True)]
    lines = [
        Line([form(value) if form and number and not pd.isna(value) else text(value)
              for number, value in zip(numeric, row, strict=True)])
        for row in frame.itertuples(index=False, name=None)
    ]  # fmt: skip
    return PageTable(caption, headings, lines, note, list(sources))


def text(value: Any) -> str:
    """Return a value as the page shows it: numbers to 4 significant digits and without an exponent, nothing
    as -."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        plain = f"{value:,.{min(digits, 9)}f}"
        return plain.rstrip("0").rstrip(".") if "." in plain else plain
    return f"{value:,}" if isinstance(value, int) else str(value)


def sentence(words: str) -> str:
    """Return words that begin with a capital."""
    return words[:1].upper() + words[1:]


def _one_line(value: Any) -> str:
    return " ".join(str(value or "").split())
