"""A save is whole or did not happen, at whatever moment it ends; nothing that is not ours is lost."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.errors import InputError
from engines.storage.files import finish, holds, remove_files, replace_files, replaced

NAMES = ("about.toml", "table.csv", "tapes")
OLD = {"about.toml": b"old", "table.csv": b"1", "tapes": b"old"}
NEW = {"about.toml": b"new", "table.csv": b"2"}  # has no tapes
STEPS = [  # everything that changes a disk
    (os, "replace"), (os, "fsync"), (os, "rename"), (pathlib.Path, "rename"), (pathlib.Path, "mkdir"),
    (pathlib.Path, "rmdir"), (pathlib.Path, "unlink"), (pathlib.Path, "open"),
]  # fmt: skip


class KilledError(BaseException):
    """Stands in for SIGKILL: nothing that the process does after it reaches the disk."""


@contextmanager
def failing(step: int, error: Callable[[], BaseException], afterwards: bool) -> Iterator[list[str]]:
    """The given step of those that change the disk raises; `afterwards`, every later one too. Yields the steps."""
    taken: list[str] = []

    def guarded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            taken.append(name)
            if len(taken) == step or (afterwards and len(taken) > step):
                raise error()
            return original(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in STEPS:
            patch.setattr(owner, name, guarded(name, getattr(owner, name)))
        yield taken


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name in NAMES}


def test_a_kill_at_any_moment_leaves_the_old_files_or_the_new(tmp_path: Path) -> None:
    """After the kill the folder is read, as a load does, and saved again, as a second call of the command does."""
    seen = set()
    for step in range(1, 100):
        folder = tmp_path / str(step)
        replace_files(folder, OLD, NAMES)
        (folder / "notes.txt").write_text("mine")
        try:
            with failing(step, KilledError, afterwards=True) as taken:
                replace_files(folder, NEW, NAMES)
        except KilledError:
            pass
        if len(taken) < step:
            break
        finish(folder, NAMES)
        found = content(folder)
        assert found in (OLD, NEW), (step, taken[-1], found)
        seen.add(found["about.toml"])
        replace_files(folder, NEW, NAMES)
        assert content(folder) == NEW
        assert sorted(path.name for path in folder.iterdir()) == ["about.toml", "notes.txt", "table.csv"]
    assert step > 15  # the loop went through a whole save
    assert seen == {b"old", b"new"}


def test_a_full_disk_leaves_the_old_files(tmp_path: Path) -> None:
    replace_files(tmp_path, OLD, NAMES)
    original = os.fsync

    def full(descriptor: int) -> None:
        original(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as failed:
            replace_files(tmp_path, NEW, NAMES)
    assert failed.value.filename.endswith("about.toml")  # the line that the command prints can say where
    assert content(tmp_path) == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES)


def test_a_first_save_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with failing(4, lambda: OSError(errno.EIO, "broken"), afterwards=False), pytest.raises(OSError, match="broken"):
        replace_files(tmp_path / "a" / "b", NEW, NAMES)
    assert list(tmp_path.iterdir()) == []


def test_files_on_their_way_count_as_there(tmp_path: Path) -> None:
    for step in range(1, 100):
        with failing(step, KilledError, afterwards=True), pytest.raises(KilledError):
            replace_files(tmp_path, NEW, NAMES)
        if holds(tmp_path, "about.toml"):
            break
    assert not (tmp_path / "about.toml").exists()
    finish(tmp_path, NAMES)
    assert content(tmp_path) == NEW


def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    replace_files(tmp_path, NEW, NAMES)
    (tmp_path / "tapes").mkdir()
    with pytest.raises(InputError, match="contains a folder tapes"):
        replace_files(tmp_path, OLD, NAMES)
    assert (tmp_path / "about.toml").read_bytes() == b"new"


def test_a_file_is_replaced_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.csv"
    with replaced(path) as beside:
        beside.write_text("old")
        assert beside.suffix == ".csv"
        assert not path.exists()
    os.chmod(path, 0o640)
    with pytest.raises(FileNotFoundError), replaced(path):
        (tmp_path / "nowhere").read_text()
    assert path.read_text() == "old"
    (tmp_path / "link").symlink_to(path)
    with replaced(tmp_path / "link") as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in path.parent.iterdir()] == ["table.csv"]


def test_removing_ours_leaves_what_is_not(tmp_path: Path) -> None:
    for folder in (tmp_path / "ours", tmp_path / "shared"):
        replace_files(folder, OLD, NAMES)
    (tmp_path / "shared" / "notes.txt").write_text("mine")
    for folder in (tmp_path / "ours", tmp_path / "shared"):
        remove_files(folder, NAMES)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["shared", "shared/notes.txt"]
