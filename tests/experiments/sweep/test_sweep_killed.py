"""A sweep that is killed at any moment loses nothing, does nothing twice and leaves no process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments.bench.sweeps import pieces, processes, same_tables, start

FILES = ["provenance.toml", "rows.parquet", "summary.parquet", "sweep.toml"]
ROOT = Path(__file__).parents[3]
CONFIG = f"""
profile = "{ROOT / "results" / "demo-cpu" / "profile"}"
architectures = ["pd", "pdv"]
concurrencies = [4, 8, 12]
repeats = 6
acceptance = "0.7"
[workload]
requests = 200
output_tokens = "100"
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


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
    process = start(tmp_path / "sweep.toml", tmp_path / "out", "--jobs", "2")
    wait_for(lambda: len(chunks(tmp_path / "out")) > 0 or process.poll() is not None, 60)
    worker = max(processes(process.pid))  # started last
    os.kill(worker if number is None else process.pid, number or signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    wait_for(lambda: not processes(process.pid), 10)
    assert process.returncode == code
    assert err.startswith(line)
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "rows.parquet").exists()
    assert len(chunks(tmp_path / "out")) > 0


def test_a_sweep_killed_twice_ends_in_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    config, whole, killed = tmp_path / "sweep.toml", tmp_path / "whole", tmp_path / "killed"
    config.write_text(CONFIG)
    kept: list[int] = []
    before: dict[str, bytes] = {}
    for piece in pieces(config, killed, 2, "--jobs", "2"):
        kept.append(piece.rows)
        assert 0 < piece.peak_mib < 1024
        if not piece.killed:
            continue
        assert before.items() < chunks(killed).items()  # what was there is untouched, and there is more
        before = chunks(killed)
        rows = pd.concat(pd.read_parquet(killed / "chunks" / name) for name in before)
        assert rows["fingerprint"].is_unique
        assert 0 < len(rows) < 36
        assert not (killed / "rows.parquet").exists()
    assert (len(kept), sum(kept)) == (3, 36)
    assert min(kept) > 0
    (undisturbed,) = pieces(config, whole, 0, "--jobs", "2")
    assert (undisturbed.killed, undisturbed.rows) == (False, 36)
    assert same_tables(killed, whole)
    assert sorted(path.name for path in killed.iterdir()) == FILES
    (whole / "summary.parquet").write_bytes(b"")
    assert not same_tables(killed, whole)


def test_a_sweep_that_fails_is_not_measured(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(CONFIG)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RuntimeError, match="the sweep failed: pdv: out = "):
        list(pieces(tmp_path / "sweep.toml", tmp_path / "out", 0))
