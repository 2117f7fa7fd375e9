"""A folder of runs that the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

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
