"""Replace files atomically, and never touch files of the user.

A file, or the set of files of a record, is written next to what it replaces, synced, and renamed. Nothing here
deletes a tree: files are removed by name, and a folder only once it is empty.
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

UNFINISHED = ".pdv-unfinished"  # folder of new files that are still being written
FINISHED = ".pdv-finished"  # folder of new files that are complete and synced, to be moved to their places
REMOVED = "removed"  # file in these folders: names of files to remove, one per line
SAVE_WAIT_S = 10.0  # how long a save waits for another one to the same folder


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a new path next to `path`, with the same suffix, to write to.

    After the block it replaces `path`. If the block raises, `path` is unchanged. Parent folders are created, and
    links are followed. Raises OSError with a file name.
    """
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
    """Write files to a folder, all or none: if killed at any moment, the folder has the old set or the new one.

    names: all files that such a set can contain. Those that are not in `contents` are removed. Other files in the
    folder are kept.

    The new files are written to a folder inside. Renaming that folder commits them, and `finish` moves them to their
    places, now or after a kill. Raises InputError if another process writes to the folder, and OSError with a file
    name.
    """
    for name in names:
        if (folder / name).is_dir():
            raise InputError("folder", str(folder), f"it contains a folder {name}; give another, or move that away")
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
    """Complete a `replace_files` that was killed after it committed. Raises InputError if that fails."""
    if not (folder / FINISHED).is_dir():
        return
    try:
        with locked(folder, wait_s=SAVE_WAIT_S):
            _finish(folder, names)
    except OSError as error:
        remedy = f"an interrupted save cannot be completed ({error.strerror}); make the folder writable"
        raise InputError("folder", str(folder), remedy) from error


def holds(folder: Path, name: str) -> bool:
    """Return whether a folder has a file, in its place or still to be moved there after a save was killed."""
    return (folder / name).is_file() or (folder / FINISHED / name).is_file()


def foreign_files(folder: Path, names: Collection[str]) -> Path | None:
    """Return a path that is in the way of `replace_files` in its hidden folders and is not its own, or None."""
    for hidden in (folder / UNFINISHED, folder / FINISHED):
        if os.path.lexists(hidden) and not hidden.is_dir():
            return hidden
        for path in sorted(hidden.iterdir()) if hidden.is_dir() else ():
            if path.name not in (*names, REMOVED):
                return path
    return None


def remove_files(folder: Path, names: Collection[str]) -> None:
    """Remove files by name, then the folder if it is empty. Other files are kept."""
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
    """Flush a file's content, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Add the file name to an OSError that has none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
