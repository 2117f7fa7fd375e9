"""Check output paths before any work, so that no results are lost and no foreign files are replaced."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from engines.errors import InputError
from engines.record.run import RUN_FILES
from engines.storage.files import foreign_files, holds, replaced
from engines.storage.reading import read_toml

UNFINISHED = "unfinished"  # folder next to a profile, for the parts of an unfinished calibration
LONGEST_HEADER = 10_000  # characters
MOVE = "move it, or give another folder"


def check_output(field: str, path: Path, files: Collection[str] = ()) -> None:
    """Raise InputError if a folder cannot be created or written there, or if it holds something that blocks `files`.

    Leaves nothing behind.
    """
    nearest = path
    try:
        while not _there(nearest):
            nearest = nearest.parent
        _follow(field, path, nearest)
        if not nearest.is_dir():
            raise InputError(field, str(path), f"{nearest} is a file; give a folder")
        with tempfile.TemporaryFile(dir=nearest):  # permissions say nothing for root or on a read-only disk
            pass
    except OSError as error:
        remedy = f"cannot write to {nearest} ({error.strerror}); give a writable folder"
        raise InputError(field, str(path), remedy) from error
    if files and (foreign := foreign_files(path, files)) is not None:
        raise InputError(field, str(path), f"{foreign} is in a folder for unfinished files of pdv; move it")
    for name in files:
        if os.path.lexists(path / name):
            _check_replaceable(field, path / name)


def check_file(field: str, path: Path) -> None:
    """Raise InputError if a file cannot be created or replaced there."""
    try:
        if _there(path):
            _check_replaceable(field, path)
    except OSError as error:
        raise InputError(field, str(path), f"not a usable path ({error.strerror}); give another") from error
    check_output(field, Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent)


def check_table(field: str, path: Path, columns: Collection[str]) -> None:
    """Raise InputError if a CSV file cannot be written there, or if an existing one lacks these columns.

    A file that the user did not name is replaced only if it is ours.
    """
    check_file(field, path)
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            header = file.readline(LONGEST_HEADER).strip().split(",")
        if not set(columns) <= set(header):
            raise InputError(field, str(path), f"this file was not written by pdv; {MOVE}")


def check_record(field: str, folder: Path) -> None:
    """Raise InputError if a run record cannot be written there.

    An existing record is replaced; other files of the same names are not.
    """
    check_output(field, folder, RUN_FILES)
    check_ours(field, folder, RUN_FILES)


def check_ours(field: str, folder: Path, names: Sequence[str], mark: str | None = None, alone: bool = False) -> None:
    """Raise InputError if a folder has files of these names that are not ours.

    The first name is a TOML file; ours has a schema_version and, if given, the key `mark`. alone: the folder is only
    for these files, so that without the first one, any other file is not ours either.
    """
    description, *_ = names
    if not holds(folder, description):
        present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        foreign = [name for name in present if (not name.startswith(".") if alone else name in names)]
        if foreign:
            raise InputError(field, str(folder), f"{foreign[0]} exists and was not written by pdv; {MOVE}")
    elif (folder / description).is_file():  # otherwise a killed save left it half-way
        try:
            said = read_toml(field, folder / description)
        except InputError:
            said = {}
        if "schema_version" not in said or (mark is not None and mark not in said):
            maker = "pdv" if mark is None else "this command"
            raise InputError(field, str(folder), f"its {description} was not written by {maker}; {MOVE}")


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, with 6 significant digits. An existing file is replaced at once."""
    with replaced(path) as beside:
        table.to_csv(beside, index=False, float_format="%.6g", lineterminator="\n")


def _there(path: Path) -> bool:
    """Return whether the path exists, counting dangling links. Raises OSError for an impossible name."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _follow(field: str, path: Path, link: Path) -> None:
    """Raise InputError for a dangling or looping link."""
    try:
        link.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        looped = isinstance(error, RuntimeError) or error.errno == errno.ELOOP
        kind = "a link that leads back to itself" if looped else "a link to something that does not exist"
        raise InputError(field, str(path), f"{link} is {kind}; give another path, or remove the link") from error


def _check_replaceable(field: str, path: Path) -> None:
    _follow(field, path, path)
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise InputError(field, str(path), "this is a folder; give a file")
    if not stat.S_ISREG(mode):
        raise InputError(field, str(path), "this is a device or a pipe; give a file")
    if not os.access(path, os.W_OK):
        raise InputError(field, str(path), "this file is read-only; give another")
