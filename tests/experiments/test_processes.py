"""An experiment that is ended from outside ends with all its processes, says so in one line, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.record.run import Run
from engines.storage.locks import locked
from experiments.cli import main

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "results" / "demo-cpu" / "profile"
CONFIG = f"""
mode = "simulated"
profile = "{PROFILE}"
acceptance = "0.7"
architectures = ["pdv"]
concurrencies = [1, 600, 800]
[workload]
requests = 1
requests_per_client = 10
output_tokens = "100"
"""
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background starts its children without
from experiments.cli import main

sys.exit(main(sys.argv[1:]))
"""
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")


def children(parent: int) -> dict[int, str]:
    """Process numbers and command lines of the processes under one, its children's children included."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has just ended
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found |= {int(folder.name): command, **children(int(folder.name))}
    return found


def wait_until(true: Callable[[], bool], seconds: float) -> float:
    """How long it took."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.05)
    return time.monotonic() - started


def running(process: int) -> bool:
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Simulations:
    """An experiment of a short cell and two that take minutes, under way on two processes."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        (folder / "grid.toml").write_text(CONFIG)
        self.arguments = ["experiment", str(folder / "grid.toml"), "--jobs", "2", "--out", str(self.out)]
        self.first = self.out / "simulated" / "pdv-c1-k4-r1"
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *self.arguments], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        wait_until(lambda: (self.first / "run.toml").exists() or self.process.poll() is not None, 60)
        self.children = children(self.process.pid)
        self.workers = [number for number, command in self.children.items() if "LokyProcess" in command]
        assert len(self.workers) == 2

    def ended(self) -> tuple[int, list[str]]:
        """Exit code and lines on standard error, once every process is gone, which takes a few seconds at most."""
        _, err = self.process.communicate(timeout=20)
        wait_until(lambda: not any(map(running, self.children)), 10)
        return self.process.returncode, err.splitlines()


@pytest.fixture
def simulations(tmp_path: Path) -> Iterator[Simulations]:
    started = Simulations(tmp_path)
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.communicate()


@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGTERM, 143, "pdv: terminated"), (signal.SIGINT, 130, "pdv: interrupted")]
)
def test_an_experiment_ends_with_its_workers_and_keeps_its_cells(
    number: signal.Signals, code: int, line: str, simulations: Simulations
) -> None:
    simulations.process.send_signal(number)
    assert simulations.ended() == (code, [line])
    assert [path.name for path in (simulations.out / "simulated").iterdir()] == ["pdv-c1-k4-r1"]
    assert len(Run.load(simulations.first).finished) == 10


def test_workers_end_soon_after_an_experiment_that_was_killed(simulations: Simulations) -> None:
    simulations.process.kill()
    assert simulations.ended() == (-signal.SIGKILL, [])
    with locked(simulations.out):
        assert len(Run.load(simulations.first).finished) == 10


def test_a_second_experiment_in_the_folder_is_refused_and_killed_workers_end_the_first_with_one_line(
    simulations: Simulations, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(simulations.out.rglob("*.parquet"))
    assert main(simulations.arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pdv: out = '{simulations.out}': another process is writing there; wait for it to finish")
    assert sorted(simulations.out.rglob("*.parquet")) == before
    for worker in simulations.workers:
        os.kill(worker, signal.SIGKILL)
    code, lines = simulations.ended()
    assert code == 1
    (line,) = lines
    assert line.startswith("pdv: a worker process was killed; run this again to resume")
