"""One process at a time writes into a folder; a killed one blocks nobody, and no lock is left lying about."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engines.errors import InputError
from engines.storage.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
from engines.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        remedy = r"out = .*another process is writing there; wait .* or give another"
        with pytest.raises(InputError, match=remedy), locked(folder):
            pass
        assert folder.is_dir()
    finally:
        holder.kill()
        holder.wait()
    with locked(folder):
        (folder / "result").touch()
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"), locked(tmp_path / "a" / "b"):  # a save within a command
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_another_thread_waits_for_its_turn(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path, wait_s=30.0):
            order.append("second")

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        with locked(tmp_path / "other"):  # is free
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
