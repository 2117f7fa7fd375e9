"""How fast a sweep is, how much memory it takes, and whether being killed changes its tables.

The sweep is killed (kill -9) when it is a part done, begun again, and so on; then its tables are compared with those
of an undisturbed one. For Linux.

Example: python -m experiments.bench.sweeps batches --out results/batches --kills 2
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet

from experiments.sweep.config import Sweep
from experiments.sweep.store import CHUNKS, ROWS, SUMMARY

ROOT = Path(__file__).parents[2]
POLL_S = 0.1
ENDED_S = 10.0
"""How long worker processes may outlive a sweep that was killed, seconds."""
MIB = 2**20


class Piece(NamedTuple):
    """A sweep from its start until it ended or was killed.

    rows: that it has added. peak_mib: most memory of all its processes together; what they share counts for each.
    ended_s: how long its processes lived on.
    """

    killed: bool
    rows: int
    seconds: float
    peak_mib: float
    ended_s: float


def start(config: Path | str, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Begin a sweep in a session of its own, so that its processes can be found when it is gone."""
    config = Path(config).resolve() if Path(config).suffix else config
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "sweep", str(config), "--out", str(folder.resolve()), *arguments],
        cwd=ROOT, text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def processes(session: int) -> dict[int, int]:
    """Return the resident memory in bytes of each process of a session, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found[int(folder.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    return found


def pieces(config: Path | str, folder: Path, kills: int, *arguments: str) -> Iterator[Piece]:
    """Run a sweep, killing it `kills` times when equal parts are done, until it ends.

    arguments: more of `pdv sweep`. Raises RuntimeError if the sweep fails, or if its processes do not end.
    """
    sweep = Sweep.load(config)
    total = len(sweep.cells()) * sweep.repeats
    rows = Rows(folder)
    for number in range(1, kills + 2):
        process = start(config, folder, *arguments)
        yield watched(process, rows, total * number // (kills + 1) if number <= kills else None)


def watched(process: subprocess.Popen[str], rows: Rows, until: int | None) -> Piece:
    """Watch a sweep, and kill it once there are so many rows."""
    started, before, peak = time.monotonic(), rows.count(), 0
    while process.poll() is None and (until is None or rows.count() < until):
        peak = max(peak, sum(processes(process.pid).values()))
        time.sleep(POLL_S)
    seconds, killed = time.monotonic() - started, process.poll() is None
    if killed:
        os.kill(process.pid, signal.SIGKILL)
    _, said = process.communicate()
    if not killed and process.returncode != 0:
        raise RuntimeError(f"the sweep failed: {said}")
    ended = time.monotonic()
    while processes(process.pid):
        if time.monotonic() - ended > ENDED_S:
            raise RuntimeError(f"processes are left: {sorted(processes(process.pid))}")
        time.sleep(POLL_S)
    return Piece(killed, rows.count() - before, seconds, peak / MIB, time.monotonic() - ended)


class Rows:
    """Count the rows that a sweep has written. Chunks never change, so each is read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, int] = {}

    def count(self) -> int:
        if (self._folder / ROWS).exists():
            return _rows_in(self._folder / ROWS)
        for path in (self._folder / CHUNKS).glob("[0-9]*.parquet"):
            if path.name not in self._known:
                self._known[path.name] = _rows_in(path)
        return sum(self._known.values())


def _rows_in(path: Path) -> int:
    return int(pyarrow.parquet.read_metadata(path).num_rows)


def same_tables(one: Path, other: Path) -> bool:
    """Return whether two sweeps ended in the same bytes."""
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in (ROWS, SUMMARY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="TOML file of the sweep, or the name of a built-in one")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sweeps `killed` and `undisturbed`")
    parser.add_argument("--kills", type=int, default=2, help="how often it is killed (default 2)")
    parser.add_argument("--jobs", help="simulations at once")
    parser.add_argument("--alone", action="store_true", help="leave the undisturbed sweep out")
    given = parser.parse_args()
    more = ["--jobs", given.jobs] if given.jobs else []
    sweeps = {"killed": given.kills} if given.alone else {"killed": given.kills, "undisturbed": 0}
    for name, kills in sweeps.items():
        done = []
        for piece in pieces(given.config, given.out / name, kills, *more):
            done.append(piece)
            ended = f"killed, processes gone {piece.ended_s:.1f} s later" if piece.killed else "ended"
            print(f"{name}: {piece.rows:,} rows in {piece.seconds:.0f} s, {piece.rows / piece.seconds:.1f} rows/s, "
                  f"{piece.peak_mib:.0f} MiB at most; {ended}", flush=True)  # fmt: skip
        rows, seconds = sum(piece.rows for piece in done), sum(piece.seconds for piece in done)
        print(f"{name}: {rows:,} rows in {seconds:.0f} s in all, {rows / seconds:.1f} rows/s")
    if not given.alone:
        same = same_tables(given.out / "killed", given.out / "undisturbed")
        print("the tables are the same, byte for byte" if same else "the tables differ")
        sys.exit(not same)


if __name__ == "__main__":
    main()
