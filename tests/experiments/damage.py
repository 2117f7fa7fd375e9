"""Damage to files, at random: to their bytes, to their place in the folder, and to what they say."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import tomli_w

TEXTS = (
    "", "fast", "[/x]", r"$\bad{$", "\u2028", "nan", "-1", "../victim", "x" * 5000, "1e400", "\x1b[2J", "'", "pdv",
)  # fmt: skip
NUMBERS = (0, -1, 1, 3, 300, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**400, 0.5, -0.5, 1e-300, 1e300, 1e9, -1e300)
ODD = (
    float("nan"), float("inf"), float("-inf"), True, False, [], {}, [[]], [1, "a"], {"a": {"b": []}}, [0], {"a": 1},
)  # fmt: skip
DIGITS, DEPTH = "9" * 5000, 2000


def damage(path: Path, others: list[Path], random: Random) -> str:
    """Damage one file of a folder, whose other files are `others`; what was done, in words."""
    others = [other for other in others if other.is_file()]
    if not path.is_file():
        return f"{path.name}: nothing left to damage"
    kinds: list[Callable[..., None]] = [_place, _bytes]
    kinds += [_BY_SUFFIX[path.suffix]] * 6
    kind = random.choice(kinds)
    try:
        kind(path, random, others) if kind is _place else kind(path, random)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, pa.ArrowException) as error:
        # an earlier damage has left nothing that this one could batch on, or no such file can be written
        return f"{path.name}: {kind.__name__} not possible ({type(error).__name__})"
    return f"{path.name}: {kind.__name__}"


def value(random: Random) -> Any:
    """A value that hardly belongs where it is put."""
    return random.choice(random.choice((TEXTS, NUMBERS, ODD)))


def scaled(number: float, random: Random) -> float:
    """A number that may still belong there: of the same kind and another size, but no batch that takes minutes."""
    larger = number * random.choice((0, 0.001, 0.5, 2, 50))
    return int(larger) if isinstance(number, int) else larger


def _place(path: Path, random: Random, others: list[Path]) -> None:
    """Something else is where the file was."""
    how = random.choice(("gone", "folder", "dangling", "loop", "other", "swapped", "pipe", "device"))
    other = random.choice(others)
    if how == "swapped":
        first, second = path.read_bytes(), other.read_bytes()
        path.write_bytes(second)
        other.write_bytes(first)
        return
    content = other.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "other":
        path.write_bytes(content)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "device":
        path.symlink_to("/dev/zero")


def _bytes(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    place = random.randrange(len(content) + 1)
    how = random.choice(("flip", "flip", "flip", "cut", "empty", "twice", "mark", "nul", "tail"))
    if how == "flip":
        for _ in range(random.choice((1, 3, 30))):
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    elif how == "cut":
        del content[place:]
    elif how == "empty":
        content.clear()
    elif how == "twice":
        content *= 2
    elif how == "mark":
        content[:0] = b"\xef\xbb\xbf"
    elif how == "nul":
        content[place:place] = b"\0"
    else:
        content += bytes(random.randrange(256) for _ in range(20))
    path.write_bytes(bytes(content))


def _toml(path: Path, random: Random) -> None:
    """A setting gets another value, another name or none, or cannot be parsed."""
    values = tomllib.loads(path.read_text())
    table: Any = values
    keys = list(table)
    key = random.choice(keys)
    while isinstance(table[key], dict | list) and table[key] and random.random() < 0.7:
        table = table[key]
        key = random.choice(list(table)) if isinstance(table, dict) else random.randrange(len(table))
    rarer = ("drop", "rename", "digits", "float digits", "deep", "deep list", "date", "again")
    how = random.choice(("value",) * len(rarer) + rarer)
    mark = "the value that is replaced"
    if how == "drop":
        del table[key]
    elif how == "rename":
        table[random.choice(("name", "x", "a b"))] = table.pop(key)
    elif how == "value":
        old = table[key]
        numeric = isinstance(old, int | float) and not isinstance(old, bool) and random.random() < 0.5
        table[key] = scaled(old, random) if numeric else value(random)
    else:
        table[key] = mark
    written = {
        "digits": DIGITS, "float digits": f"{DIGITS[:400]}.0", "deep": "{a=" * DEPTH + "1" + "}" * DEPTH,
        "deep list": "[" * DEPTH + "]" * DEPTH, "date": "2026-13-45", "again": f'"{mark}"',
    }  # fmt: skip
    text = tomli_w.dumps(values).replace(f'"{mark}"', written.get(how, ""))
    if how == "again":
        text += text.splitlines()[0] + "\n"
    path.write_text(text)


def _csv(path: Path, random: Random) -> None:
    """A cell, a row or a column of a CSV table."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    row, column = random.randrange(len(rows)), random.randrange(len(rows[0]))
    rarer = ("drop row", "row twice", "drop column", "column twice", "rename", "shorten")
    how = random.choice(("cell",) * len(rarer) + rarer)
    if how == "cell" and random.random() < 0.5 and rows[row][column].replace(".", "", 1).isdecimal():
        rows[row][column] = f"{scaled(float(rows[row][column]), random):g}"
    elif how == "cell":
        rows[row][column] = random.choice((*TEXTS, *map(str, (*NUMBERS[:9], *NUMBERS[10:], *ODD)), DIGITS))
    elif how == "drop row":
        del rows[row]
    elif how == "row twice":
        rows.insert(row, rows[row])
    elif how == "rename":
        rows[0][column] = "x"
    elif how == "shorten":
        rows[row].pop()
    else:
        rows = [[*r[:column], *([r[column]] * 2 if how == "column twice" else []), *r[column + 1 :]] for r in rows]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _jsonl(path: Path, random: Random) -> None:
    """A value of a line of JSON."""
    lines = path.read_text().splitlines()
    line = random.randrange(len(lines))
    row = json.loads(lines[line])
    row[random.choice(list(row))] = value(random)
    lines[line] = random.choice((json.dumps(row),) * 6 + ("[" * 100_000, f'{{"timestamp": {DIGITS}}}', "{}", "null"))
    path.write_text("\n".join(lines) + "\n")


def _parquet(path: Path, random: Random) -> None:
    """A column, a row or a cell of a Parquet table."""
    table = parquet.read_table(path)
    place, row = random.randrange(table.num_columns), random.randrange(table.num_rows)
    name, values = table.column_names[place], table.column(place).to_pylist()
    rarer = ("null", "all null", "text", "drop", "twice", "rename", "row twice", "drop row", "empty")
    how = random.choice(("cell",) * len(rarer) + rarer)
    if how == "cell":
        values[row] = _cell(values[row], random)
    elif how == "null":
        values[row] = None
    elif how == "all null":
        values = [None] * len(values)
    elif how == "text":
        values = [str(v) for v in values]
    if how == "drop":
        table = table.remove_column(place)
    elif how == "twice":
        table = table.append_column(name, table.column(place))
    elif how == "rename":
        table = table.rename_columns([f"{n}_" if n == name else n for n in table.column_names])
    elif how in ("row twice", "drop row", "empty"):
        rows = list(range(table.num_rows))
        rows[row : row + 1] = {"row twice": [row, row], "drop row": [], "empty": []}[how]
        table = table.take([] if how == "empty" else rows)
    else:
        table = table.set_column(place, name, pa.array(values))
    parquet.write_table(table, path)


def _cell(old: Any, random: Random) -> Any:
    """A value of the same kind, so that the column can still hold it, but not one that belongs there."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float) and random.random() < 0.5:
        return scaled(old, random)
    if isinstance(old, int):
        return random.choice([n for n in NUMBERS if isinstance(n, int) and abs(n) < 2**63])
    if isinstance(old, list):
        bits = list(old)
        if bits:
            bits[random.randrange(len(bits))] = random.choice((2, -2, 300, None))
        return random.choice((bits, [], old * 2, None))
    if isinstance(old, float) or old is None:
        return random.choice([float(n) for n in (*NUMBERS[:9], *NUMBERS[10:])] + [np.nan, np.inf, -np.inf])
    return random.choice(TEXTS)


_BY_SUFFIX: dict[str, Callable[[Path, Random], None]] = {
    ".toml": _toml, ".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet,
}  # fmt: skip


def picture(folder: Path, but: Path) -> dict[str, Any]:
    """Every file of a folder, with what it holds or where it leads; without the folder `but`."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if but in (path, *path.parents):
            continue
        if path.is_symlink():
            found[str(path)] = os.readlink(path)
        else:
            found[str(path)] = path.read_bytes() if path.is_file() else path.lstat().st_mode
    return found


def copied(source: Path, goal: Path) -> Path:
    return Path(shutil.copytree(source, goal))
