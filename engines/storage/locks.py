"""A lock that lets one process at a time write to a folder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import lock_descriptor

from engines.errors import InputError

LOCK = ".pdv-lock"
_RETRY_S = 0.05
_held: set[tuple[str, int]] = set()  # folder and thread


@contextmanager
def locked(folder: Path, field: str = "out", wait_s: float = 0.0) -> Iterator[None]:
    """Lock a folder while the block writes to it. A thread that already holds the lock may enter again.

    Missing folders are created, and removed again if they are empty after the block. The operating system releases
    the lock of a process that is killed. The hidden lock file is removed after the block. Raises InputError if
    another process or thread still holds the lock after `wait_s` seconds.
    """
    key = os.path.realpath(folder), threading.get_ident()
    if key in _held:
        yield
        return
    made = _make(folder)
    try:
        descriptor = _acquire(folder, field, wait_s)
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)
            try:
                with suppress(OSError):
                    if os.fstat(descriptor).st_size == 0:  # otherwise it is a file of the user
                        (folder / LOCK).unlink()  # while still locked, so that it is never another process's file
            finally:
                os.close(descriptor)
    finally:
        with suppress(OSError):
            for each in made:
                each.rmdir()


def _make(folder: Path) -> list[Path]:
    """Create a folder. Returns the folders that were missing, innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _acquire(folder: Path, field: str, wait_s: float) -> int:
    """Return the descriptor that holds the lock. A file that was unlinked before it was locked does not count."""
    path, end = folder / LOCK, time.monotonic() + wait_s
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # the last holder may have removed it if it was empty
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue
        try:
            free = lock_descriptor(descriptor, blocking=False)
            if free and _is_at(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            remedy = f"cannot lock a file there ({error.strerror}); give a folder on a local disk"
            raise InputError(field, str(folder), remedy) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not free:
            if time.monotonic() >= end:
                remedy = "another process is writing there; wait for it to finish, or give another folder"
                raise InputError(field, str(folder), remedy)
            time.sleep(_RETRY_S)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
