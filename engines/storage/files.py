"""Files that are whole or not there, however a save ends, and folders in which nothing is lost that is not ours.

A file, or the set of files of a record, is written beside what it replaces, synced, and renamed. Nothing here deletes
a tree: what is removed is removed by name, and a folder only once it is empty.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.errors import InputError
from engines.storage.locks import locked

UNFINISHED = ".pdv-unfinished"  # new files of a folder that are still being written
FINISHED = ".pdv-finished"  # new files that are whole and synced, on their way to their places
REMOVED = "removed"  # in these: names of files that the folder is to have no longer, one a line
SAVE_WAIT_S = 10.0  # how long a save waits for another one into the same folder


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new path beside `path` to write to, with the same suffix. After the block it takes the place of `path`; if
    the block raises, `path` is as it was. Makes the parent folders; a link is followed. Raises OSError with a file
    name."""
    real = Path(os.path.realpath(path))
    beside = real.with_name(f".pdv-{secrets.token_hex(8)}{real.suffix}")
    with _named(path):
        real.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield beside
            if real.exists():
                shutil.copymode(real, beside)
            _sync(beside)
            os.replace(beside, real)
            _sync(real.parent)
        finally:
            beside.unlink(missing_ok=True)


def replace_files(folder: Path, contents: Mapping[str, bytes], names: Collection[str]) -> None:
    """Write files into a folder, all of them or none: killed at any moment, it has the old set or the new one.

    names: what such a set can consist of; those that `contents` leaves out are removed. Whatever else is in the
    folder stays. The new files are written into a folder inside; renaming that is the moment from which on they
    count, and `finish` moves them to their places, now or after a kill. Raises InputError if another process writes
    there, and OSError with a file name.
    """
    for name in names:
        if (folder / name).is_dir():
            raise InputError("folder", str(folder), f"{name} is a folder in it; give another, or move that away")
    with locked(folder, wait_s=SAVE_WAIT_S):
        _finish(folder, names)
        unfinished = folder / UNFINISHED
        try:
            _discard(unfinished, names)
            unfinished.mkdir()
            for name, content in contents.items():
                _write(unfinished / name, content)
            _write(unfinished / REMOVED, "\n".join(set(names) - set(contents)).encode())
            _sync(unfinished)
            unfinished.rename(folder / FINISHED)
        finally:
            _discard(unfinished, names)
        _sync(folder)
        _finish(folder, names)


def finish(folder: Path, names: Collection[str]) -> None:
    """Complete a `replace_files` that was killed after its files were whole. Raises InputError if it cannot be."""
    if not (folder / FINISHED).is_dir():
        return
    try:
        with locked(folder, wait_s=SAVE_WAIT_S):
            _finish(folder, names)
    except OSError as error:
        remedy = f"a save was interrupted here and cannot be completed ({error.strerror}); make it writable"
        raise InputError("folder", str(folder), remedy) from error


def holds(folder: Path, name: str) -> bool:
    """Whether a file is in its place in the folder, or on its way there after a save that was killed."""
    return (folder / name).is_file() or (folder / FINISHED / name).is_file()


def foreign_files(folder: Path, names: Collection[str]) -> Path | None:
    """Something in the hidden folders of `replace_files` that it did not put there and that would be in its way."""
    for hidden in (folder / UNFINISHED, folder / FINISHED):
        if os.path.lexists(hidden) and not hidden.is_dir():
            return hidden
        for path in sorted(hidden.iterdir()) if hidden.is_dir() else ():
            if path.name not in (*names, REMOVED):
                return path
    return None


def remove_files(folder: Path, names: Collection[str]) -> None:
    """Remove files by name, then the folder if it is empty. Whatever else is there stays."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _finish(folder: Path, names: Collection[str]) -> None:
    finished = folder / FINISHED
    if not finished.is_dir():
        return
    if (finished / REMOVED).is_file():
        for name in set((finished / REMOVED).read_text().splitlines()) & set(names):
            (folder / name).unlink(missing_ok=True)
    for name in names:
        with suppress(FileNotFoundError):  # moved before the kill
            os.replace(finished / name, folder / name)
    _sync(folder)
    _discard(finished, names)


def _discard(folder: Path, names: Collection[str]) -> None:
    if folder.is_dir():
        for name in (*names, REMOVED):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _write(path: Path, content: bytes) -> None:
    with _named(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Have the disk keep a file's content, or the names in a folder, before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An OSError of the block says which file: a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
