"""A folder of runs, and refusals, that the tests of the command line share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli import main
from tests.experiments import synthetic


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a profile, live runs and simulated ones."""
    folder = tmp_path_factory.mktemp("work")
    synthetic.profile().save(folder / "profile")
    for repeat in (1, 2):
        synthetic.live("pdv", f"pdv-r{repeat}", seed=repeat).save(folder / "live" / f"pdv-r{repeat}")
    synthetic.simulated("pdv", name="pdv").save(folder / "simulated" / "pdv")
    return folder


@pytest.fixture
def in_work(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """A function that runs a command and returns the one line with which it is refused."""

    def refused(command: str) -> str:
        assert main(command.split()) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        return line.removeprefix("pdv: ")

    return refused
