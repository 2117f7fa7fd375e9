"""A sweep that is killed at any moment loses nothing, does nothing twice and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

FILES = ["provenance.toml", "rows.parquet", "summary.parquet", "sweep.toml"]
ROOT = Path(__file__).parents[3]
CONFIG = f"""
profile = "{ROOT / "results" / "demo-cpu" / "profile"}"
architectures = ["pd", "pdv"]
concurrencies = [4, 8, 12]
repeats = 6
acceptance = "0.7"
[workload]
requests = 60
output_tokens = "100"
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def start(folder: Path) -> subprocess.Popen[str]:
    """Begin a sweep in a session of its own, so that its processes can be found when it is gone."""
    arguments = ["sweep", str(folder.parent / "sweep.toml"), "--out", str(folder), "--jobs", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", *arguments], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def alive(session: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def chunks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "chunks").glob("[0-9]*.parquet"))}


def wait_for(true: Callable[[], bool], seconds: float) -> None:
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGTERM, 143, "pdv: terminated"), (None, 1, "pdv: a worker process was killed; run this again")],
)
def test_a_sweep_that_is_terminated_or_loses_a_worker_keeps_what_it_has_and_says_so(
    tmp_path: Path, number: signal.Signals | None, code: int, line: str
) -> None:
    (tmp_path / "sweep.toml").write_text(CONFIG)
    process = start(tmp_path / "out")
    wait_for(lambda: len(chunks(tmp_path / "out")) > 0 or process.poll() is not None, 60)
    worker = max(alive(process.pid))  # started last
    os.kill(worker if number is None else process.pid, number or signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    wait_for(lambda: not alive(process.pid), 10)
    assert process.returncode == code
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "rows.parquet").exists()
    assert len(chunks(tmp_path / "out")) > 0


def killed_after(count: int, folder: Path) -> dict[str, bytes]:
    """Begin a sweep, kill it when it has more than `count` chunks, and return the chunks once no process is left."""
    process = start(folder)
    wait_for(lambda: len(chunks(folder)) > count or process.poll() is not None, 60)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not alive(process.pid), 10)
    return chunks(folder)


def test_a_sweep_killed_twice_ends_in_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(CONFIG)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    before: dict[str, bytes] = {}
    for _ in range(2):
        after = killed_after(len(before), killed)
        assert before.items() < after.items()  # what was there is untouched, and there is more
        before = after
    assert not (killed / "rows.parquet").exists()
    kept = pd.concat(pd.read_parquet(killed / "chunks" / name) for name in before)
    assert kept["fingerprint"].is_unique
    assert 0 < len(kept) < 36

    finished = start(killed)
    out, err = finished.communicate(timeout=120)
    assert (finished.returncode, err) == (0, "")
    assert f"{36 - len(kept)} simulations" in out
    undisturbed = start(whole)
    assert "36 simulations" in undisturbed.communicate(timeout=120)[0]
    for name in ("rows.parquet", "summary.parquet"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert sorted(path.name for path in killed.iterdir()) == FILES
