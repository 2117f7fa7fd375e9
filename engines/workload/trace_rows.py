"""Read the rows of a trace file, CSV or JSON lines, plain or gzipped, with one line in memory at a time."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from engines.errors import InputError
from engines.storage.reading import require_file

LONGEST_LINE = 1_000_000  # characters; lines of the known traces have a few hundred
GZIP = b"\x1f\x8b"  # first bytes of a gzip file

NOT_TEXT = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as they are decoded here

Row = tuple[int, Mapping[str, Any]]
"""Number of a row's last line, from 1, and its values by column (text if the file is CSV)."""


def trace_rows(path: Path) -> Iterator[Row]:
    """Read a file row by row. Every row of a CSV file has all columns.

    Before the rows comes one that names the columns: the header of a CSV file (without values), or the first row of a
    JSON-lines file.

    Raises InputError if the path is not a regular file, and if the file cannot be read or is empty. Raises it with
    the line for what is not text or cannot be decompressed, for lines that are not valid CSV or JSON, and for
    duplicate columns or keys.
    """
    field = "trace"
    require_file(field, path)  # reading a device may never end, and a pipe blocks
    try:
        with _open(path) as file:
            lines = _lines(path, file)
            blank = 0
            for line in lines:
                if line.strip():
                    break
                blank += 1
            else:
                raise InputError(field, str(path), "the file is empty; give a trace with at least one request")
            rows = _json_rows if line.lstrip().startswith(("{", "[")) else _csv_rows
            yield from rows(path, itertools.chain([line], lines), blank)
    except OSError as error:
        raise InputError(field, str(path), f"cannot read the file ({error.strerror}); give another file") from error


def _open(path: Path) -> TextIO:
    with path.open("rb") as file:
        compressed = file.read(len(GZIP)) == GZIP
    how: Any = {"encoding": "utf-8-sig", "errors": "surrogateescape"}
    return gzip.open(path, "rt", **how) if compressed else path.open(**how)


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    for number in itertools.count(1):
        where = f"trace {path.name}, line {number}"
        try:
            line = file.readline(LONGEST_LINE + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            remedy = f"cannot decompress the file further ({error}); compress it again"
            raise InputError(where, "unreadable", remedy) from error
        if not line:
            return
        wrong = ""
        if len(line) > LONGEST_LINE:
            wrong = f"the line is longer than {LONGEST_LINE} characters"
        elif "\0" in line:
            wrong = "the line contains a NUL, so it is not text"
        elif not line.isascii() and NOT_TEXT.search(line):
            wrong = "the line is not text in UTF-8"
        if wrong:
            raise InputError(where, shortened(line), f"{wrong}; give a CSV or JSON-lines trace")
        yield line


def _json_rows(path: Path, lines: Iterable[str], before: int) -> Iterator[Row]:
    first = True
    for number, line in enumerate(lines, before + 1):
        if not line.strip():
            continue
        where = f"trace {path.name}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except RecursionError as error:
            raise InputError(where, shortened(line), "it is nested too deeply; repair the line") from error
        except ValueError as error:  # also for duplicate keys and numbers of thousands of digits
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]
            raise InputError(where, shortened(line), f"not valid JSON ({reason}); repair the line") from error
        if not isinstance(row, dict):
            raise InputError(where, shortened(line), "write one JSON object per line")
        if first:
            yield number, row
            first = False
        yield number, row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"duplicate key {_twice(name for name, _ in pairs)}")
    return made


def _csv_rows(path: Path, lines: Iterable[str], before: int) -> Iterator[Row]:
    reader = csv.reader(lines, strict=True)
    columns: list[str] = []
    number = before
    try:
        for cells in reader:
            number = before + reader.line_num
            if not columns:
                columns = cells
                _check_columns(f"trace {path.name}, line {number}", columns)
                yield number, dict.fromkeys(columns)
            elif len(cells) > 1 or any(cell.strip() for cell in cells):
                _check_cells(f"trace {path.name}, line {number}", columns, cells)
                yield number, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        where = f"trace {path.name}, line {number + 1}"
        raise InputError(where, "unreadable", f"not valid CSV ({error}); repair the line") from error


def _check_columns(where: str, columns: list[str]) -> None:
    named = [column for column in columns if column]
    if len(set(named)) < len(named):
        raise InputError(where, shortened(", ".join(columns)), f"duplicate column {_twice(named)}; remove one")


def _check_cells(where: str, columns: list[str], cells: list[str]) -> None:
    if len(cells) < len(columns):
        raise InputError(f"{where}, {columns[len(cells)]}", None, "the value is missing; complete or remove the line")
    if len(cells) > len(columns):
        raise InputError(where, f"{len(cells)} values", f"there are {len(columns)} columns; repair the line")


def _twice(names: Iterable[str]) -> str:
    return shortened(Counter(names).most_common(1)[0][0])


def shortened(text: str) -> str:
    """Shorten a line or a list of names to fit a message."""
    text = text.rstrip("\n")
    return text if len(text) <= 80 else f"{text[:77]}..."
